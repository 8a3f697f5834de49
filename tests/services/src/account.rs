//! The system account that servers run under which refuse to run as root.

use std::fs;
use std::process::Command;

use crate::debian::run;
use crate::{Error, Result};

/// A system account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Account {
    /// None where this process is not root and so needs none.
    pub(crate) fn for_servers() -> Result<Option<Account>> {
        if !is_root() {
            return Ok(None);
        }
        if let Some(account) = find("postgres").or_else(|| find("tidegate")) {
            return Ok(Some(account));
        }
        run(Command::new("useradd").args([
            "--system",
            "--no-create-home",
            "--shell",
            "/bin/false",
            "tidegate",
        ]))?;
        find("tidegate").map(Some).ok_or_else(|| Error::failed("the account `tidegate` could not be created"))
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn find(name: &str) -> Option<Account> {
    parse(&fs::read_to_string("/etc/passwd").ok()?, name)
}

fn parse(passwd: &str, name: &str) -> Option<Account> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some(Account { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let passwd = "root:x:0:0::/:/bin/sh\npostgres2:x:9:9::/:/bin/sh\npostgres:x:101:104:a:/v:/bin/sh\n";
        assert_eq!(parse(passwd, "postgres"), Some(Account { uid: 101, gid: 104 }));
        assert_eq!(parse(passwd, "post"), None);
    }
}
