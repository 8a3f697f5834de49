//! An initialised data folder, made once a version and copied for each server.

use std::path::Path;
use std::process::Command;

use super::install::Programs;
use crate::account::Account;
use crate::debian::run;
use crate::folder::{Folder, copy, give};
use crate::process::Lifetime;
use crate::{Error, Result, Service, cache};

/// The superuser of every server.
pub(super) const SUPERUSER: &str = "postgres";

/// Fills `data` from the template; `fresh` runs `initdb` instead.
pub(super) fn fill(programs: &Programs, data: &Path, account: Option<Account>, fresh: bool) -> Result<()> {
    if fresh {
        return initialise(programs, data, account);
    }
    let name = format!("postgresql-{}-template", programs.version()?);
    let template = cache::entry(&name, |unfinished| {
        // Made elsewhere: the server's account may not be able to enter the cache.
        let folder = Folder::create(Service::Postgresql, account, Lifetime::Process)?;
        let made = folder.path().join("data");
        initialise(programs, &made, account)?;
        copy(&made, &unfinished.join("data"), None)
    })?;
    copy(&template.join("data"), data, account)
}

fn initialise(programs: &Programs, data: &Path, account: Option<Account>) -> Result<()> {
    std::fs::create_dir_all(data).map_err(Error::io("no data folder"))?;
    give(data, account)?;
    let arguments =
        ["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--username", SUPERUSER, "--pgdata"];
    let mut command = Command::new(programs.path("initdb"));
    if let Some(Account { uid, gid }) = account {
        command = Command::new("setpriv");
        command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).arg("--clear-groups");
        command.arg(programs.path("initdb"));
    }
    run(command.args(arguments).arg(data).current_dir(data)).map(drop)
}
