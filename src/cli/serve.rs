//! `circuitscope serve`: the page, and the HTTP interface behind it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;

use crate::features::NEURONPEDIA;
use crate::serve::{Access, OpenModel, ServeOptions, Server, graph_url, is_loopback};
use crate::{Error, Result};

use super::setup::SetupArgs;
use super::{note, say};

/// Where `serve` listens, unless another port is named.
pub(super) const DEFAULT_PORT: u16 = 8041;

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The folder of graphs, where new ones go too; or one of its graphs, to begin with
    #[arg(default_value = "graphs")]
    folder: PathBuf,
    #[command(flatten, next_help_heading = "Model")]
    setup: SetupArgs,
    /// Show what files hold, without a model
    #[arg(long, conflicts_with_all = ["model", "transcoders", "setup", "device"], help_heading = "Model")]
    no_model: bool,
    /// What features are active on, a folder that `features collect` wrote [default: the one beside the transcoders]
    #[arg(long, value_name = "FOLDER", help_heading = "Model")]
    features: Option<PathBuf>,
    /// Show what Neuronpedia knows of features of published sets, asking it when a person does; or another site with its
    /// interface
    #[arg(long, value_name = "SITE", num_args = 0..=1, require_equals = true, default_missing_value = NEURONPEDIA,
        value_parser = site, help_heading = "Model")]
    online: Option<String>,
    /// The port; 0 for any that is free
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_PORT, help_heading = "Where")]
    port: u16,
    /// Listen at this address too, so that others can reach the page; requests need the token that is printed [default:
    /// this machine alone, 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", help_heading = "Where")]
    host: Option<IpAddr>,
    /// A name by which others reach this machine, as they type it; repeatable, with --host
    #[arg(long, value_name = "NAME", requires = "host", help_heading = "Where")]
    host_name: Vec<String>,
    /// What Neuronpedia's clients must send in `x-secret-key` [env: CIRCUITSCOPE_SECRET]
    #[arg(long, value_name = "SECRET", help_heading = "Where")]
    secret: Option<String>,
    /// Open the page in a browser
    #[arg(long, help_heading = "Where")]
    open: bool,
    /// Serve another program's page, circuit-tracer's say, from this folder; it may load and run what it wants
    #[arg(long, value_name = "FOLDER", conflicts_with = "page", help_heading = "Where")]
    foreign_page: Option<PathBuf>,
    /// Read the files of the page from a folder, while working on them
    #[arg(long, value_name = "FOLDER", hide = true)]
    page: Option<PathBuf>,
}

/// The address of a site.
fn site(text: &str) -> std::result::Result<String, String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(char::is_whitespace)) {
        true => Ok(text.to_owned()),
        false => Err(format!("an address begins with http:// or https://, as {NEURONPEDIA}")),
    }
}

/// Serves until the program is ended.
///
/// # Errors
/// The port is taken; the address is none of this machine's.
pub(super) fn run(args: ServeArgs) -> Result<()> {
    args.setup.start_threads()?;
    let host = args.host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let token = if is_loopback(host) { None } else { Some(new_token()?) };
    let access = Access {
        hosts: args.host_name.iter().map(|name| name.to_lowercase()).collect(),
        token: token.clone(),
        secret: args
            .secret
            .clone()
            .or_else(|| std::env::var("CIRCUITSCOPE_SECRET").ok())
            .filter(|secret| !secret.is_empty()),
        foreign_page: args.foreign_page.is_some(),
        ..Access::default()
    };
    let quiet = args.setup.quiet;
    let ServeArgs { folder, setup, features, online, page, foreign_page, open, .. } = args;
    let page = page.or(foreign_page);
    // A graph stands for its folder, and is what the page begins with.
    let first = folder.is_file().then(|| folder.file_stem().unwrap_or_default().to_string_lossy().into_owned());
    let folder = match first.as_ref().and_then(|_| folder.parent()) {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => folder,
    };
    let setup_given = !args.no_model;
    let options = ServeOptions {
        folder: Some(folder.clone()),
        model: setup_given.then(|| -> OpenModel { Box::new(move || setup.open(None)) }),
        features,
        published_site: online,
        demo: true,
        page,
        access,
        ..ServeOptions::default()
    };
    let server = Server::new(options)?;
    server.run(SocketAddr::new(host, args.port), move |address| {
        let url = url(address, first.as_deref(), token.as_deref());
        if !quiet {
            say(&format!("serving {} at {url}\n", crate::text::terminal(&folder.display().to_string())));
            say("end with Ctrl-C\n");
        }
        if open && !open_browser(&url) {
            note(&format!("no browser could be started; open {url}"));
        }
    })
}

/// The address of the page; the token is in the part that browsers send to nobody.
fn url(address: SocketAddr, graph: Option<&str>, token: Option<&str>) -> String {
    let page = graph.map_or_else(|| format!("http://{address}/"), |graph| graph_url(address, graph));
    page + &token.map(|token| format!("#token={token}")).unwrap_or_default()
}

/// 128 random bits in hexadecimal.
fn new_token() -> Result<String> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| Error::Io {
        doing: "cannot make a token from",
        path: "the system's random numbers".into(),
        source: std::io::Error::other(error.to_string()),
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Starts the system's browser; whether it could be started.
pub(super) fn open_browser(url: &str) -> bool {
    let (program, before): (&str, &[&str]) = match std::env::consts::OS {
        "macos" => ("open", &[]),
        "windows" => ("cmd", &["/C", "start", ""]),
        _ => ("xdg-open", &[]),
    };
    let mut command = std::process::Command::new(program);
    command.args(before).arg(url).stdin(std::process::Stdio::null());
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().is_ok()
}
