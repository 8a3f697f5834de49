//! A program in another language, which answers commands.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value as Json;
use tidegate_services::Client;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// For an answer: the first one of Java comes when it has compiled the program.
const PATIENCE: Duration = Duration::from_secs(60);

/// It ends with the value.
pub(crate) struct Program {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Program {
    /// Starts a program of the folder `clients`.
    pub(crate) async fn start(client: Client, source: &str, arguments: &[&str]) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(source);
        let command = tokio::task::spawn_blocking(move || client.command(&source)).await.unwrap().unwrap();
        let mut command = Command::from(command);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { input, output: BufReader::new(output).lines(), _child: child }
    }

    /// What it answers to a command.
    pub(crate) async fn ask(&mut self, command: Json) -> Json {
        let answer = self.try_to(&command).await;
        assert!(answer.get("error").is_none(), "{command}: {answer}");
        answer
    }

    /// Why it cannot do a command.
    pub(crate) async fn refusal(&mut self, command: Json) -> String {
        let answer = self.try_to(&command).await;
        answer["error"].as_str().unwrap_or_else(|| panic!("{command}: {answer}")).to_owned()
    }

    async fn try_to(&mut self, command: &Json) -> Json {
        self.input.write_all(format!("{command}\n").as_bytes()).await.unwrap();
        let line = tokio::time::timeout(PATIENCE, self.output.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("no answer to {command}")).unwrap();
        serde_json::from_str(&line.unwrap_or_else(|| panic!("it ended at {command}"))).unwrap()
    }
}
