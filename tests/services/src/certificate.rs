//! A certificate authority of the server's own, and the server's certificate by it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

use crate::account::Account;
use crate::folder::give;
use crate::{Error, Result};

/// The authority's certificate, beside the data folder.
pub(crate) const AUTHORITY: &str = "authority.crt";

/// Writes `server.crt` and `server.key` into `data`, and the authority's certificate into `folder`.
pub(crate) fn write(folder: &Path, data: &Path, account: Option<Account>) -> Result<()> {
    let (authority, server, key) =
        generate().map_err(|cause| Error::failed(format!("no certificate could be made: {cause}")))?;
    for (path, text, mode) in [
        (folder.join(AUTHORITY), authority, 0o644),
        (data.join("server.crt"), server, 0o644),
        (data.join("server.key"), key, 0o600),
    ] {
        let failed = || format!("{} could not be written", path.display());
        fs::write(&path, text).map_err(Error::io(failed()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(Error::io(failed()))?;
        give(&path, account)?;
    }
    Ok(())
}

fn generate() -> std::result::Result<(String, String, String), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "tidegate test authority");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let server = CertificateParams::new(names)?.signed_by(&key, &authority)?;
    Ok((authority.pem(), server.pem(), key.serialize_pem()))
}
