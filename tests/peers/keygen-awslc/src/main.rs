//! AWS-LC's RSA key generator as a peer of scripts/bench: a line "rsa_2048" in, nanoseconds out.

use aws_lc_rs::rsa::{KeyPair, KeySize};
use std::io::{self, BufRead, Write};
use std::time::Instant;

fn main() {
    let mut out = io::stdout();
    for line in io::stdin().lock().lines() {
        let size = match line.expect("a line").trim() {
            "rsa_2048" => KeySize::Rsa2048,
            "rsa_3072" => KeySize::Rsa3072,
            "rsa_4096" => KeySize::Rsa4096,
            "rsa_8192" => KeySize::Rsa8192,
            other => panic!("unknown key type {other}"),
        };
        let start = Instant::now();
        KeyPair::generate(size).expect("a key");
        writeln!(out, "{}", start.elapsed().as_nanos()).expect("a reader");
        out.flush().expect("a reader");
    }
}
