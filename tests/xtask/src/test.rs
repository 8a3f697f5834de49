//! `cargo xtask test`: everything that has to hold, with real servers, and the count of it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::process::{Command, ExitCode};
use std::sync::OnceLock;
use std::time::Instant;

use tidegate_services::{Client, Running, Service, given_url};

use crate::gates::{self, GATES};
use crate::libtest::Reader;
use crate::outcome::Tally;
use crate::workspace::Built;
use crate::{bench, conformance, examples, proof, stream, workspace};

/// One step of the test command.
#[derive(Debug)]
pub(crate) struct Step {
    /// For `--only` and the list of failures.
    pub(crate) name: &'static str,
    /// For whoever waits.
    pub(crate) about: &'static str,
    /// Whether the servers are started before it.
    pub(crate) needs_services: bool,
    /// A failure inside does not keep the next step from running.
    pub(crate) run: fn(&Run) -> Tally,
}

/// After the gates, in the order in which they run. A new step is a line here.
pub(crate) const STEPS: &[Step] = &[
    Step { name: "tests", about: "cargo test, doctests included", needs_services: true, run: tests },
    Step {
        name: "conformance",
        about: "what every adapter of a broker has to do",
        needs_services: false,
        run: conformance::quick,
    },
    Step {
        name: "proof",
        about: "simulated histories with faults, and planted bugs",
        needs_services: false,
        run: proof::short,
    },
    Step {
        name: "bench",
        about: "every work of the benchmarks, once and small",
        needs_services: false,
        run: bench::quick,
    },
    Step {
        name: "examples",
        about: "every example, with its output",
        needs_services: true,
        run: examples::run,
    },
];

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One step (`format`, `lints`, `tests`, …) or the tests of one package.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Services to go without; their tests are counted as skipped.
    #[arg(long, value_name = "SERVICE", value_delimiter = ',')]
    skip: Vec<Service>,
}

/// What the steps are given.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// For every process of a step: where the servers are, and which are skipped.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// The tests of this package only.
    pub(crate) package: Option<String>,
    built: OnceLock<Result<Built, String>>,
}

impl Run {
    /// The programs and suites that steps run, built once.
    pub(crate) fn built(&self) -> Result<&Built, String> {
        self.built.get_or_init(workspace::build).as_ref().map_err(Clone::clone)
    }

    /// Where a service is, if it is there.
    pub(crate) fn url(&self, service: Service) -> Option<OsString> {
        let variable = OsString::from(service.url_variable());
        let ours = self.environment.iter().find(|(name, _)| *name == variable).map(|(_, url)| url.clone());
        ours.or_else(|| given_url(service).map(OsString::from))
    }

    /// One of the programs.
    pub(crate) fn program(&self, name: &str) -> Result<Command, String> {
        let path = self.built()?.programs.get(name).ok_or_else(|| format!("there is no program {name}"))?;
        let mut command = Command::new(path);
        command.current_dir(workspace::root()).envs(self.environment.iter().cloned());
        Ok(command)
    }

    #[expect(clippy::disallowed_methods, reason = "how long a step takes here is what is told")]
    pub(crate) fn steps<'a>(&self, steps: impl Iterator<Item = &'a Step>) -> Tally {
        let mut tally = Tally::default();
        for step in steps {
            println!("\n== {}: {}", step.name, step.about);
            let begin = Instant::now();
            tally.add((step.run)(self));
            println!("-- {}: {} s", step.name, begin.elapsed().as_secs());
        }
        tally
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let (steps, package) = select(arguments.only.as_deref())?;
    let mut run = Run { package, ..Run::default() };
    let skip = skip_list(arguments)?;
    let skipped_file =
        tempfile::NamedTempFile::new().map_err(|cause| format!("no temporary file: {cause}"))?;
    gates::provision();
    let mut tally = Tally::default();
    let mut missing = BTreeSet::new();
    let mut servers = Vec::new();
    if steps.iter().any(|step| step.needs_services) {
        println!("== services");
        missing.extend(skip.iter().copied());
        let used = Service::ALL.iter().copied().filter(|service| service.is_used());
        for service in used.filter(|service| !skip.contains(service)) {
            if let Some(url) = given_url(service) {
                println!("{service}: given, {}", without_password(&url));
                continue;
            }
            match Running::start(service) {
                Ok(server) => servers.push(server),
                Err(cause) => {
                    println!("{service}: {cause}");
                    tally.add(Tally::failed(format!("service {service}: {cause}")));
                    missing.insert(service);
                }
            }
        }
        for client in Client::ALL {
            let is_used = client.services().iter().any(|service| !missing.contains(service));
            if is_used && let Err(cause) = client.provision() {
                println!("client {client:?}: {cause}");
                tally.add(Tally::failed(format!("client {client:?}: {cause}")));
            }
        }
    }
    for server in &servers {
        println!("{}: {}", server.service(), server.url());
        run.environment.push((server.service().url_variable().into(), server.url().into()));
    }
    let names: Vec<_> = skip.iter().map(|service| service.name()).collect();
    run.environment.push(("TIDEGATE_SKIP".into(), names.join(",").into()));
    run.environment.push(("TIDEGATE_SKIPPED_FILE".into(), skipped_file.path().into()));
    run.environment.push(("TIDEGATE_PROVISION".into(), "off".into()));

    tally.add(run.steps(steps.into_iter()));
    drop(servers);
    let skipped = std::fs::read_to_string(skipped_file.path()).unwrap_or_default();
    tally.turn_into_skips(skipped_tests(&skipped));
    // Of a service that is not in use, nothing is missing; its tests did not run all the same.
    let mut names: BTreeSet<_> = missing.iter().map(|service| service.name().to_owned()).collect();
    names.extend(skipped_services(&skipped));
    let names: Vec<_> = names.into_iter().collect();
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    let unmet = missing.iter().any(|service| service.is_required() && (in_ci || !skip.contains(service)));
    if unmet {
        println!("\na required service did not run");
    }
    report(&tally, &names);
    Ok(if unmet || !tally.failures.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The end of the output: what failed, what did not run, and the counts as the last line.
pub(crate) fn report(tally: &Tally, not_run: &[String]) {
    println!();
    for name in &tally.failures {
        println!("failed: {name}");
    }
    for name in not_run {
        println!("not run: {name}");
    }
    println!("{tally}");
}

fn select(only: Option<&str>) -> Result<(Vec<&'static Step>, Option<String>), String> {
    let all = || GATES.iter().chain(STEPS);
    let Some(name) = only else { return Ok((all().collect(), None)) };
    if let Some(step) = all().find(|step| step.name == name) {
        return Ok((vec![step], None));
    }
    let metadata = workspace::metadata()?;
    let packages = metadata.workspace_packages();
    let mut packages = packages.iter().map(|package| package.name.as_str());
    let package =
        packages.find(|package| *package == name || package.strip_prefix("tidegate-") == Some(name));
    let known: Vec<_> = all().map(|step| step.name).collect();
    let package = package.ok_or_else(|| {
        format!("`{name}` is neither a package of the workspace nor a step (steps: {})", known.join(", "))
    })?;
    Ok((STEPS.iter().filter(|step| step.name == "tests").collect(), Some(package.to_owned())))
}

/// From the command line and from `TIDEGATE_SKIP`.
fn skip_list(arguments: &Arguments) -> Result<BTreeSet<Service>, String> {
    let variable = std::env::var("TIDEGATE_SKIP").unwrap_or_default();
    let named = variable.split(',').filter(|name| !name.trim().is_empty()).map(str::parse);
    named.chain(arguments.skip.iter().copied().map(Ok)).collect()
}

/// A test that asks for two skipped services is one test.
fn skipped_tests(lines: &str) -> usize {
    let names = lines.lines().filter_map(|line| line.split_once('\t'));
    names.map(|(_, test)| test).collect::<BTreeSet<_>>().len()
}

fn skipped_services(lines: &str) -> impl Iterator<Item = String> {
    lines.lines().filter_map(|line| line.split_once('\t')).map(|(service, _)| service.to_owned())
}

fn tests(run: &Run) -> Tally {
    let mut arguments = vec!["test", "--no-fail-fast"];
    match &run.package {
        Some(package) => arguments.extend(["--package", package]),
        // With what is asked for by name alone.
        None => arguments.extend(["--workspace", "--features", workspace::ON_REQUEST]),
    }
    let mut command = workspace::cargo(&arguments);
    command.envs(run.environment.iter().cloned());
    let mut reader = Reader::default();
    match stream::run(&mut command, None, |line| reader.line(line)) {
        Ok(ended) => reader.finish("tests", ended.status.success()),
        Err(cause) => Tally::failed(format!("tests: cargo could not be run: {cause}")),
    }
}

fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    match rest.split_once('@') {
        Some((user, host)) => format!("{scheme}://{}@{host}", user.split(':').next().unwrap_or_default()),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_skipped_once() {
        let lines = "mongodb\tit::a\npostgresql\tit::a\nmongodb\tit::b\n";
        assert_eq!(skipped_tests(lines), 2);
        assert_eq!(skipped_services(lines).collect::<Vec<_>>(), ["mongodb", "postgresql", "mongodb"]);
    }

    #[test]
    fn a_password_is_not_printed() {
        assert_eq!(without_password("postgres://u:p@h:1/d"), "postgres://u@h:1/d");
        assert_eq!(without_password("mongodb://h:1/?replicaSet=r"), "mongodb://h:1/?replicaSet=r");
    }

    #[test]
    fn one_step_or_one_package_can_be_chosen() {
        assert_eq!(select(Some("lints")).unwrap().0[0].name, "lints");
        assert_eq!(select(Some("xtask")).unwrap().1.as_deref(), Some("tidegate-xtask"));
        assert!(select(Some("nothing")).unwrap_err().contains("steps: format, lints"));
    }
}
