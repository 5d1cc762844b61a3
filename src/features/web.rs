//! How this room asks the web.

use std::time::Duration;

/// A client that follows no redirects, which could carry a key elsewhere, and trusts what the system trusts.
#[cfg(feature = "hub")]
pub(super) fn agent(timeout: Duration) -> ureq::Agent {
    use ureq::tls::{RootCerts, TlsConfig};
    let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_global(Some(timeout))
        .user_agent(concat!("circuitscope/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls)
        .build();
    config.new_agent()
}

/// The body at an address, at most `max_bytes` long.
///
/// # Errors
/// In words: no answer in time, an answer that is none, a longer one; a build without network.
pub(super) fn get(address: &str, timeout: Duration, max_bytes: u64) -> Result<String, String> {
    #[cfg(not(feature = "hub"))]
    {
        let _ = (address, timeout, max_bytes);
        Err("this build has no network (feature `hub`)".to_owned())
    }
    #[cfg(feature = "hub")]
    {
        use std::io::Read;
        let reply = agent(timeout).get(address).call().map_err(|error| error.to_string())?;
        let status = reply.status();
        if !status.is_success() {
            return Err(format!("it answers {status}"));
        }
        let mut text = String::new();
        let reader = reply.into_body().into_reader().take(max_bytes + 1);
        std::io::BufReader::new(reader).read_to_string(&mut text).map_err(|error| error.to_string())?;
        match text.len() as u64 > max_bytes {
            true => Err(format!("its answer is longer than {max_bytes} bytes")),
            false => Ok(text),
        }
    }
}
