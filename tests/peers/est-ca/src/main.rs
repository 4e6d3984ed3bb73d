//! est-ca on a loopback port, without TLS: nginx stands in front (see ../est-ca.nginx.conf).
//!
//! usage: est-ca-peer DIR USER PASSWORD_FILE
//!
//! Makes a new CA, writes DIR/ca.der, prints `port N` and serves until standard input ends, so that it
//! never outlives the test that started it.
//! /simpleenroll wants USER and the password; /simplereenroll believes the header X-Client-CN, in which
//! nginx names the verified client. Either name becomes the subject of what is issued.

use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use axum::http::Request;
use axum::middleware::{self, Next};
use est_ca::auth::{AuthBackend, Principal};
use est_ca::ca::{serial::InMemorySerialStore, CertProfile, Issuer};
use est_ca::est::server::EstServer;

struct OneUser {
    user: String,
    password: String,
}

impl AuthBackend for OneUser {
    fn verify_bootstrap(&self, user: &str, password: &str) -> Result<Principal, String> {
        if user == self.user && password == self.password {
            Ok(Principal::new(user))
        } else {
            Err("wrong user or password".into())
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, user, password_file] = args.as_slice() else {
        return Err("usage: est-ca-peer DIR USER PASSWORD_FILE".into());
    };
    let password = std::fs::read_to_string(password_file)?.trim_end().to_string();
    let issuer = Issuer::generate_self_signed(
        "est-ca test CA",
        CertProfile::client_auth_for_days(30),
        Arc::new(InMemorySerialStore::new()),
    )?;
    std::fs::write(Path::new(dir).join("ca.der"), issuer.ca_cert_der())?;

    let auth = OneUser { user: user.clone(), password };
    let app = EstServer::new(issuer, Arc::new(auth)).router().layer(middleware::from_fn(
        |mut request: Request<_>, next: Next<_>| async move {
            let name = request.headers().get("x-client-cn").and_then(|value| value.to_str().ok());
            if let Some(principal) = name.filter(|name| !name.is_empty()).map(Principal::new) {
                request.extensions_mut().insert(principal);
            }
            next.run(request).await
        },
    ));

    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("port {}", listener.local_addr()?.port());
    std::io::stdout().flush()?;
    axum::Server::from_tcp(listener)?.serve(app.into_make_service()).await?;
    Ok(())
}
