//! What differs between brokers.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use super::Options;
use crate::{Error, Result};

/// How one kind of broker is found, fetched, set up and run.
pub(super) struct Recipe {
    /// What is looked for, for whoever lacks it.
    pub(super) source: &'static str,
    /// How many ports a server has; the first is the one of its URL.
    pub(super) ports: usize,
    /// What is spoken beside the protocol of the URL, and at which of the ports.
    pub(super) others: &'static [(&'static str, usize)],
    /// Whether it takes [`Options::password`].
    pub(super) has_password: bool,
    /// Whether it takes [`Options::tls`].
    pub(super) has_tls: bool,
    /// Finds the program as this machine is.
    pub(super) locate: fn() -> Option<Program>,
    /// Installs or fetches what `locate` finds then.
    pub(super) fetch: fn() -> Result<()>,
    /// Writes what the server reads, once, before its first start.
    pub(super) prepare: fn(&Site) -> Result<()>,
    /// What runs, in the order of start; the last one is the server, the others are its companions.
    pub(super) processes: fn(&Site) -> Vec<Run>,
    /// Where clients find it.
    pub(super) url: fn(&Site) -> String,
}

/// An installed broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    /// What is executed.
    pub(super) file: PathBuf,
    /// Where it keeps what it needs to run.
    pub(super) home: PathBuf,
}

/// The place of one server.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) program: Program,
    pub(super) options: Options,
    pub(super) folder: PathBuf,
    pub(super) ports: Vec<u16>,
}

/// One process of a server.
pub(super) struct Run {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(String, OsString)>,
    /// Whether it does its work; asked until it does.
    pub(super) is_ready: fn(&Site) -> bool,
}

/// The user of a broker that knows users and has none of its own.
pub(super) const USER: &str = "user";

impl Site {
    /// The port of the URL.
    pub(super) fn port(&self) -> u16 {
        self.ports[0]
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    pub(super) fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        let folder = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, text))
            .map_err(Error::io(format!("{} could not be written", path.display())))
    }

    /// Our settings, with the asked ones in the place of those of the same name.
    pub(super) fn settings(&self, own: &[(&str, String)]) -> Vec<(String, String)> {
        let asked = &self.options.settings;
        let ours = own.iter().filter(|(name, _)| asked.iter().all(|(other, _)| other != name));
        let ours = ours.map(|(name, value)| ((*name).to_owned(), value.clone()));
        ours.chain(asked.iter().cloned()).collect()
    }

    /// The same as the text of a file.
    pub(super) fn lines(&self, own: &[(&str, String)], line: impl Fn(&str, &str) -> String) -> String {
        self.settings(own).iter().map(|(name, value)| line(name, value)).collect()
    }

    /// `user:password@` where there is a password.
    pub(super) fn login(&self, user: &str) -> String {
        self.options.password.as_ref().map(|password| format!("{user}:{password}@")).unwrap_or_default()
    }
}

#[cfg(test)]
impl Site {
    /// A place where nothing is.
    pub(super) fn nowhere(options: Options) -> Site {
        let program = Program { file: PathBuf::from("/nowhere/bin/x"), home: PathBuf::from("/nowhere") };
        Site { program, options, folder: PathBuf::from("/nowhere/server"), ports: vec![1, 2, 3] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_asked_setting_replaces_our_own() {
        let options = Options::default().with_setting("b", 5).with_setting("c", "x");
        let own = [("a", "1".to_owned()), ("b", "2".to_owned())];
        let text = Site::nowhere(options).lines(&own, |name, value| format!("{name}={value}\n"));
        assert_eq!(text, "a=1\nb=5\nc=x\n");
    }
}
