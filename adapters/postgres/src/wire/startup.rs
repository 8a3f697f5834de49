//! From an open link to a session that may speak: who we are, and the proof of it.

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use tidegate_core::error::code;
use tidegate_core::{Error, Result};

use crate::config::Settings;
use crate::error;
use crate::wire::frame::{Frame, Frames, unexpected};

const OPERATION: &str = "connect";

/// Says hello as a reader of one database's changes and answers whatever proof the server asks for.
pub(crate) async fn start(frames: &mut Frames, settings: &Settings) -> Result<()> {
    let mut parameters = vec![
        ("user", settings.user.as_str()),
        ("database", settings.database.as_str()),
        ("replication", "database"),
        ("application_name", settings.application_name.as_str()),
        // Values in text form depend on these; fixed here, as the apply worker of the server itself does.
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, YMD"),
        ("IntervalStyle", "postgres"),
        ("TimeZone", "UTC"),
        ("extra_float_digits", "3"),
        ("bytea_output", "hex"),
    ];
    if let Some(options) = &settings.options {
        parameters.push(("options", options));
    }
    write(frames, |output| frontend::startup_message(parameters, output))?;
    frames.flush(OPERATION).await?;
    authenticate(frames, settings).await?;
    frames.trust();

    loop {
        match message(frames).await? {
            Message::ParameterStatus(_) | Message::BackendKeyData(_) | Message::NoticeResponse(_) => {}
            Message::ReadyForQuery(_) => return Ok(()),
            _ => return Err(unexpected(OPERATION)),
        }
    }
}

async fn authenticate(frames: &mut Frames, settings: &Settings) -> Result<()> {
    match message(frames).await? {
        Message::AuthenticationOk => return Ok(()),
        Message::AuthenticationCleartextPassword => {
            if !frames.link().is_private() {
                return Err(denied(
                    "the server asks for the bare password over a connection anybody can read",
                )
                .hint("use TLS, or scram-sha-256 in the server's pg_hba.conf"));
            }
            let words = password(settings)?;
            write(frames, |output| frontend::password_message(words.as_bytes(), output))?;
        }
        Message::AuthenticationMd5Password(body) => {
            let hash = md5_hash(settings.user.as_bytes(), password(settings)?.as_bytes(), body.salt());
            write(frames, |output| frontend::password_message(hash.as_bytes(), output))?;
        }
        Message::AuthenticationSasl(body) => scram(frames, settings, &body).await?,
        Message::AuthenticationGss
        | Message::AuthenticationSspi
        | Message::AuthenticationKerberosV5
        | Message::AuthenticationScmCredential => {
            return Err(denied("the server asks for a proof that is not supported")
                .hint("use scram-sha-256, md5 or a client certificate in the server's pg_hba.conf"));
        }
        _ => return Err(unexpected(OPERATION)),
    }
    frames.flush(OPERATION).await?;
    match message(frames).await? {
        Message::AuthenticationOk => Ok(()),
        _ => Err(unexpected(OPERATION)),
    }
}

async fn scram(frames: &mut Frames, settings: &Settings, body: &AuthenticationSaslBody) -> Result<()> {
    let malformed = |error| error::from_io(error, OPERATION);
    let offered: Vec<&str> = body.mechanisms().collect().map_err(malformed)?;
    let end_point = frames.link().end_point().map(<[u8]>::to_vec);
    let (mechanism, binding) = match end_point {
        Some(hash) if offered.contains(&SCRAM_SHA_256_PLUS) => {
            (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash))
        }
        // "We could bind, you seem unable to": the server refuses if somebody between us cut its offer.
        Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
        None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
    };
    if !offered.contains(&mechanism) {
        return Err(denied("the server offers no proof that is supported").with("offered", offered.join(" ")));
    }

    let mut scram = ScramSha256::new(password(settings)?.as_bytes(), binding);
    write(frames, |output| frontend::sasl_initial_response(mechanism, scram.message(), output))?;
    frames.flush(OPERATION).await?;
    let Message::AuthenticationSaslContinue(body) = message(frames).await? else {
        return Err(unexpected(OPERATION));
    };
    scram.update(body.data()).map_err(malformed)?;
    write(frames, |output| frontend::sasl_response(scram.message(), output))?;
    frames.flush(OPERATION).await?;
    let Message::AuthenticationSaslFinal(body) = message(frames).await? else {
        return Err(unexpected(OPERATION));
    };
    // The server proves in turn that it knows the password.
    scram
        .finish(body.data())
        .map_err(|error| denied("the server does not know the password it asks for").because(error))
}

/// The next message, with a refusal as an error and notices dropped.
async fn message(frames: &mut Frames) -> Result<Message> {
    loop {
        match frames.next(OPERATION).await.map_err(before_ready)? {
            Frame::Message(Message::ErrorResponse(body)) => {
                return Err(error::from_response(&body, OPERATION));
            }
            Frame::Message(Message::NoticeResponse(_)) => {}
            Frame::Message(message) => return Ok(message),
            Frame::CopyBoth | Frame::CopyData(_) => return Err(unexpected(OPERATION)),
        }
    }
}

/// A connection lost before it was one has had no effect, so it may be tried again.
fn before_ready(error: Error) -> Error {
    if error.code() == code::CONNECTION_LOST {
        return Error::new(code::UNREACHABLE, "the server closed the connection before it was usable")
            .because(error);
    }
    error
}

fn password(settings: &Settings) -> Result<String> {
    settings.password.read()?.ok_or_else(|| {
        denied("the server asks for a password and none is given")
            .hint("name one with password-file= or PGPASSWORD")
    })
}

fn write(frames: &mut Frames, fill: impl FnOnce(&mut BytesMut) -> std::io::Result<()>) -> Result<()> {
    fill(frames.output()).map_err(|error| {
        Error::new(code::CONFIG_INVALID, "a setting cannot be sent to the server").because(error)
    })
}

fn denied(message: &'static str) -> Error {
    Error::new(code::ACCESS_DENIED, message).with("operation", OPERATION)
}
