//! A bucket of an S3-compatible service of the test's own: moto's server, on the loopback; it goes with the test.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use bbot_controller::objects::{Bucket, Where};

use crate::support::curl;

const PROGRAM: &str = "moto_server";

pub(crate) struct Service {
    server: Child,
    pub(crate) url: String,
}

impl Service {
    /// Starts one, with a bucket `farm`; `None`, and the test is skipped, where it is not installed.
    pub(crate) fn start() -> Option<Self> {
        let own = testkit::cache().join("s3/bin").join(PROGRAM);
        let program = if own.is_file() {
            own
        } else if testkit::program(PROGRAM, "s3") {
            PathBuf::from(PROGRAM)
        } else {
            return None;
        };
        let mut server = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
        let url = lines.find_map(|line| {
            let line = line.unwrap();
            let url = line.split("Running on ").nth(1);
            url.map(|url| url.trim().to_owned())
        });
        // It says a line for each request, which somebody has to take.
        std::thread::spawn(move || lines.for_each(drop));
        let service = Self {
            server,
            url: url.expect("it says where it listens"),
        };
        let made = curl(&["-X", "PUT", &format!("{}/farm", service.url)], b"");
        assert_eq!(made.status, 200, "{}", made.text());
        Some(service)
    }

    /// A place in its bucket.
    pub(crate) fn place(&self, keys: &std::path::Path) -> Where {
        std::fs::write(
            keys,
            "[default]\naws_access_key_id = test\naws_secret_access_key = secret\n",
        )
        .unwrap();
        Where::Bucket(Bucket {
            bucket: "farm".to_owned(),
            prefix: "bbot".to_owned(),
            endpoint: Some(self.url.clone()),
            region: Some("us-east-1".to_owned()),
            credentials: Some(keys.to_owned()),
        })
    }

    /// The names of all that is in the bucket.
    pub(crate) fn names(&self) -> Vec<String> {
        let list = curl(&[&format!("{}/farm?list-type=2", self.url)], b"").text();
        let names = list.split("<Key>").skip(1);
        names
            .map(|rest| rest.split('<').next().unwrap().to_owned())
            .collect()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
