//! `--open`: a graph on the page, of a server that runs already or of one that is started.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use clap::Args;

use crate::Result;
use crate::serve::{Access, OpenModel, ServeOptions, Server, graph_url, is_serving};

use super::serve::{DEFAULT_PORT, open_browser};
use super::{note, say};

/// Where the page is.
#[derive(Debug, Default, Args)]
pub struct OpenArgs {
    /// Show the graph in the browser: on the page of `circuitscope serve`, which is started if it does not run
    #[arg(long, help_heading = "Output")]
    pub open: bool,
    /// The port of that page
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_PORT, requires = "open", help_heading = "Output")]
    port: u16,
}

impl OpenArgs {
    /// Opens the page of a graph file; serves it until the program is ended, where nobody else does.
    ///
    /// # Errors
    /// The port is taken by another program.
    pub(super) fn show(&self, graph: &Path, model: Option<OpenModel>) -> Result<()> {
        let folder = graph.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let id = graph.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.port);
        let show = move |address| {
            let url = graph_url(address, &id);
            note(&format!("open {url}"));
            open_browser(&url);
        };
        if is_serving(address, folder) {
            show(address);
            return Ok(());
        }
        let options = ServeOptions {
            folder: Some(folder.to_owned()),
            model,
            access: Access::default(),
            ..ServeOptions::default()
        };
        Server::new(options)?.run(address, |address| {
            show(address);
            say("end with Ctrl-C\n");
        })
    }
}
