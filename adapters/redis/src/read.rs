//! Reads entries, and waits for them.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{Value, cmd};
use tidegate_broker::hand::Fetched;
use tidegate_broker::log::Reader;
use tidegate_broker::unsettled::Place;
use tidegate_core::error::code;
use tidegate_core::port::Attempt;
use tidegate_core::{Error, Lane, Message, Name, Result};

use crate::codec::{decode, entry_id, place, stored_at, text, unexpected};
use crate::config::Config;
use crate::connect::{Shared, open};
use crate::error::from_driver;
use crate::log::key;

/// How much longer than the server waits an answer may take.
const MARGIN: Duration = Duration::from_secs(5);
/// How long the server waits at most.
const BLOCK_MAX: Duration = Duration::from_secs(1);
/// How soon the end of a wait is asked for again.
const WAKE_AGAIN: Duration = Duration::from_millis(1);

pub(crate) struct RedisReader {
    config: Arc<Config>,
    shared: Arc<Shared>,
    channel: Name,
    /// Its own: while the server waits for entries, nothing else is answered on a connection.
    connection: MultiplexedConnection,
    /// The connection's number at the server.
    number: i64,
    /// A call was dropped while the server waited for it.
    is_waiting: bool,
}

impl RedisReader {
    pub(crate) async fn open(config: Arc<Config>, shared: Arc<Shared>, channel: &Name) -> Result<Self> {
        let mut connection = open(&config, BLOCK_MAX + MARGIN).await?;
        let number = cmd("CLIENT").arg("ID").query_async(&mut connection).await;
        let number = number.map_err(|error| from_driver(error, "ask for the connection's number"))?;
        Ok(Self { config, shared, channel: channel.clone(), connection, number, is_waiting: false })
    }

    /// Ends the wait of a call that was dropped. Such a call may reach the server behind what is to end it, so that is said again
    /// until the connection answers.
    async fn wake(&mut self) -> Result<()> {
        if !self.is_waiting {
            return Ok(());
        }
        let mut shared = self.shared.get(&self.config).await?;
        let ping = cmd("PING");
        let mut answered = pin!(ping.query_async::<Value>(&mut self.connection));
        loop {
            let woken = cmd("CLIENT").arg("UNBLOCK").arg(self.number).query_async::<Value>(&mut shared).await;
            if let Err(error) = woken {
                self.shared.lose();
                return Err(from_driver(error, "end a wait"));
            }
            tokio::select! {
                answered = &mut answered => {
                    answered.map_err(|error| from_driver(error, "end a wait"))?;
                    self.is_waiting = false;
                    return Ok(());
                }
                () = tokio::time::sleep(WAKE_AGAIN) => {}
            }
        }
    }
}

#[async_trait]
impl Reader for RedisReader {
    async fn read(
        &mut self,
        wanted: &[(Lane, Place, usize)],
        wait: Duration,
        out: &mut Vec<(Lane, Fetched)>,
    ) -> Result<()> {
        self.wake().await?;
        let count = wanted.iter().map(|(.., count)| *count).max().unwrap_or(1);
        let mut command = cmd("XREAD");
        command.arg("COUNT").arg(count.max(1));
        let millis = u64::try_from(wait.min(BLOCK_MAX).as_millis()).unwrap_or(u64::MAX);
        if millis > 0 {
            command.arg("BLOCK").arg(millis);
        }
        command.arg("STREAMS");
        for (lane, ..) in wanted {
            command.arg(key(&self.channel, &format!("lane:{}", lane.0)));
        }
        for (_, after, _) in wanted {
            command.arg(entry_id(*after));
        }
        self.is_waiting = millis > 0;
        let answer: redis::RedisResult<Value> = command.query_async(&mut self.connection).await;
        self.is_waiting = false;
        let streams = match answer.map_err(|error| from_driver(error, "read messages"))? {
            Value::Nil => return Ok(()),
            answer => list(answer)?,
        };
        for stream in streams {
            let mut stream = list(stream)?.into_iter();
            let (Some(name), Some(entries)) = (stream.next(), stream.next()) else { continue };
            let name = text(name)?;
            let lane = name.rsplit(':').next().and_then(|lane| lane.parse().ok()).map(Lane);
            let malformed = || Error::new(code::STREAM_MALFORMED, format!("a stream is called {name}"));
            let lane = lane.ok_or_else(malformed)?;
            for entry in list(entries)? {
                let mut entry = list(entry)?.into_iter();
                let (Some(id), Some(fields)) = (entry.next(), entry.next()) else { continue };
                out.push((lane, self.fetched(lane, place(&text(id)?)?, fields)?));
            }
        }
        Ok(())
    }
}

impl RedisReader {
    fn fetched(&self, lane: Lane, place: Place, fields: Value) -> Result<Fetched> {
        let message = decode(list(fields)?)
            .unwrap_or_else(|(error, body)| Message::undecodable(&self.channel, lane, place, &error, body));
        let attempt = Attempt::AtLeast(1);
        let message = Arc::new(message);
        Ok(Fetched { place, message, stored_at: Some(stored_at(place)), attempt, has_position: true })
    }
}

fn list(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(list) => Ok(list),
        Value::Nil => Ok(Vec::new()),
        other => Err(unexpected(&other, "a list was")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use redis::RedisError;
    use tidegate_core::Endpoint;
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::Notify;

    use super::*;
    use crate::codec::bytes;

    /// A server that learns of a wait only behind what was to end it.
    #[derive(Debug, Default)]
    struct Late {
        asked: Mutex<Vec<String>>,
        read: Notify,
        woken: Notify,
    }

    impl Late {
        /// Answers one connection, a command after the other.
        async fn serve(self: Arc<Self>, stream: TcpStream) -> std::io::Result<()> {
            let mut stream = BufReader::new(stream);
            loop {
                let command = command(&mut stream).await?;
                let ends = command == "CLIENT UNBLOCK";
                let before = {
                    let mut asked = self.asked.lock().unwrap();
                    asked.push(command.clone());
                    asked.iter().filter(|asked| **asked == "CLIENT UNBLOCK").count()
                };
                let answer = match &*command {
                    "CLIENT ID" => ":7\r\n",
                    "CLIENT UNBLOCK" if before < 3 => ":0\r\n",
                    "CLIENT UNBLOCK" => ":1\r\n",
                    "PING" => "+PONG\r\n",
                    "XREAD" => {
                        self.read.notify_one();
                        self.woken.notified().await;
                        "*-1\r\n"
                    }
                    _ => "+OK\r\n",
                };
                if ends && before == 3 {
                    self.woken.notify_one();
                }
                stream.write_all(answer.as_bytes()).await?;
            }
        }
    }

    /// The first two words of a command, or the first one where the others are not always the same.
    async fn command(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
        let mut line = String::new();
        let number = async |stream: &mut BufReader<TcpStream>, line: &mut String| {
            line.clear();
            stream.read_line(line).await?;
            line.trim()[1..].parse::<usize>().map_err(std::io::Error::other)
        };
        let mut words = Vec::new();
        for _ in 0..number(stream, &mut line).await? {
            let mut word = vec![0; number(stream, &mut line).await? + 2];
            stream.read_exact(&mut word).await?;
            words.push(String::from_utf8_lossy(&word[..word.len() - 2]).into_owned());
        }
        words.truncate(if words[0] == "CLIENT" { 2 } else { 1 });
        Ok(words.join(" "))
    }

    /// Until it was over by itself, nothing more came of any lane.
    #[tokio::test]
    async fn a_wait_that_the_server_learns_of_too_late_is_ended_all_the_same() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let late = Arc::new(Late::default());
        let server = Arc::clone(&late);
        let mut connections = tokio::task::JoinSet::new();
        let serving = async {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(Arc::clone(&server).serve(stream));
            }
        };
        let config = Arc::new(Config::of(&Endpoint::parse(&url).unwrap()).unwrap());
        let reading = async {
            let name = Name::new("orders").unwrap();
            let mut reader = RedisReader::open(config, Arc::default(), &name).await.unwrap();
            let (wanted, mut out) = ([(Lane(0), 0, 10)], Vec::new());
            tokio::select! {
                read = reader.read(&wanted, BLOCK_MAX, &mut out) => panic!("{read:?}"),
                () = late.read.notified() => {}
            }
            reader.wake().await.unwrap();
        };
        tokio::select! {
            () = serving => {}
            () = reading => {}
        }
        let asked = late.asked.lock().unwrap().clone();
        assert_eq!(asked.iter().filter(|asked| **asked == "CLIENT UNBLOCK").count(), 3, "{asked:?}");
    }

    /// Errors are logged.
    #[test]
    fn no_error_says_what_stands_in_a_message() {
        let body = || Value::BulkString(b"s3cret".to_vec());
        let answer = || Value::Map(vec![(body(), body())]);
        let unread: std::result::Result<u64, RedisError> =
            redis::from_redis_value(Value::Array(vec![body()])).map_err(RedisError::from);
        for (error, kind) in [
            (list(body()).unwrap_err(), "bytes"),
            (list(answer()).unwrap_err(), "a map"),
            (bytes(answer()).unwrap_err(), "a map"),
            (bytes(Value::Array(vec![body()])).unwrap_err(), "a list"),
            (from_driver(unread.unwrap_err(), "read"), "not what was expected"),
        ] {
            let shown = format!("{error:?} {}", error.line());
            assert!(!shown.contains("s3cret") && !shown.contains("115, 51"), "{shown}");
            assert!(shown.contains(kind), "{shown}");
        }
    }
}
