//! https controllers: whose certificates the agent trusts.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::scripted::answer;
use crate::support::*;

/// A controller over TLS for one request; its URL, its authority's certificate, and what
/// it has read: nothing, when the agent did not trust it.
fn controller() -> (String, String, JoinHandle<String>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = own.signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let connection = ServerConnection::new(Arc::new(config)).unwrap();
        let mut stream = StreamOwned::new(connection, stream);
        let mut bytes = [0; 16 * 1024];
        let Ok(length) = stream.read(&mut bytes) else {
            return String::new();
        };
        let none = answer("200 OK", "", ": 1\nsession:\n");
        let _ = stream.write_all(none.as_bytes());
        let _ = stream.flush();
        text(&bytes[..length])
    });
    (url, authority, server)
}

/// What the controller reads of an agent with these options and this environment.
fn asks(args: &[&str], environment: Option<&str>, url: &str, server: JoinHandle<String>) -> String {
    let host = Host::new();
    let args = [args, &["--fake-bootstrap", "--fake-build", url]].concat();
    let mut command = host.command(&args);
    if let Some(file) = environment {
        command.env("SSL_CERT_FILE", file);
    }
    let mut child = command.spawn().unwrap();
    let read = server.join().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    read
}

#[test]
fn a_given_authority_is_trusted() {
    let (url, authority, server) = controller();
    let host = Host::new();
    let file = host.file("ca.pem", &authority);
    let read = asks(&["--ca", &file], None, &url, server);
    assert!(read.starts_with("POST /?build-task "), "{read}");
}

#[test]
fn the_systems_authorities_are_trusted() {
    // The environment names another file for the system's store, as OpenSSL has it.
    let (url, authority, server) = controller();
    let host = Host::new();
    let file = host.file("system.pem", &authority);
    let read = asks(&[], Some(&file), &url, server);
    assert!(read.starts_with("POST /?build-task "), "{read}");
}

#[test]
fn an_unknown_authority_gets_nothing() {
    let (_, other, _) = controller();
    let (url, authority, server) = controller();
    let host = Host::new();
    let (other, system) = (
        host.file("ca.pem", &other),
        host.file("system.pem", &authority),
    );
    // What is given is in place of the system's.
    assert_eq!(asks(&["--ca", &other], Some(&system), &url, server), "");
}

#[test]
fn a_missing_file_of_authorities_ends_the_agent() {
    let host = Host::new();
    let output = host.run(&["--ca", "/nonexistent/ca.pem", "https://127.0.0.1:1/"]);
    fails(&output, &["/nonexistent/ca.pem (--ca)"]);
}
