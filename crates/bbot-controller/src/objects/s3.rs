//! Objects in a bucket of an S3-compatible service.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

/// A request is tried again for so long before its asker is told to come back later.
const PATIENCE: Duration = Duration::from_secs(20);

/// The longest time of one request, a piece of an upload with it.
const REQUEST: Duration = Duration::from_secs(120);

/// A bucket, and how it is reached. Keys are never part of it: they are in the environment or in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub bucket: String,
    /// What the names of all objects begin with; may be empty.
    pub prefix: String,
    /// The service's URL; none: as the environment says, else that of AWS.
    pub endpoint: Option<String>,
    /// Its region; none: as the environment says.
    pub region: Option<String>,
    /// A file with the keys, in AWS's form of such files; none: the environment.
    pub credentials: Option<PathBuf>,
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Bucket {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text
            .strip_prefix("s3://")
            .ok_or("it does not begin with s3://")?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let good = !bucket.is_empty()
            && bucket
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !good {
            return Err("it names no bucket: s3://BUCKET or s3://BUCKET/PREFIX");
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
            endpoint: None,
            region: None,
            credentials: None,
        })
    }
}

impl Bucket {
    pub(super) fn open(&self) -> Result<Arc<dyn ObjectStore>, Box<dyn Error + Send + Sync>> {
        // What the service is reached with by TLS; another part of the program may have said so before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(&self.bucket)
            .with_client_options(ClientOptions::new().with_timeout(REQUEST))
            .with_retry(RetryConfig {
                max_retries: 5,
                retry_timeout: PATIENCE,
                ..RetryConfig::default()
            });
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(region) = &self.region {
            builder = builder.with_region(region);
        }
        if let Some(path) = &self.credentials {
            for (key, value) in credentials(path)? {
                builder = builder.with_config(key, value);
            }
        }
        let plain = builder
            .get_config_value(&AmazonS3ConfigKey::Endpoint)
            .is_some_and(|url| url.starts_with("http://"));
        let store = builder.with_allow_http(plain).build()?;
        Ok(if self.prefix.is_empty() {
            Arc::new(store)
        } else {
            Arc::new(PrefixStore::new(store, self.prefix.as_str()))
        })
    }
}

/// The keys in a file: `aws_access_key_id`, `aws_secret_access_key` and `aws_session_token`, as `NAME = VALUE` each on a line.
fn credentials(
    path: &Path,
) -> Result<Vec<(AmazonS3ConfigKey, String)>, Box<dyn Error + Send + Sync>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("cannot read the keys in {}: {e}", path.display()))?;
    let mut keys = Vec::new();
    for line in text.lines() {
        let Some((name, value)) = line.split_once('=') else {
            continue;
        };
        let key = match name.trim() {
            "aws_access_key_id" => AmazonS3ConfigKey::AccessKeyId,
            "aws_secret_access_key" => AmazonS3ConfigKey::SecretAccessKey,
            "aws_session_token" => AmazonS3ConfigKey::Token,
            _ => continue,
        };
        keys.push((key, value.trim().to_owned()));
    }
    if keys.len() < 2 {
        let what = format!(
            "{} does not hold aws_access_key_id = ... and aws_secret_access_key = ...",
            path.display()
        );
        return Err(what.into());
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets() {
        for (text, bucket, prefix) in [
            ("s3://b", "b", ""),
            ("s3://b/", "b", ""),
            ("s3://my.farm/bbot/objects/", "my.farm", "bbot/objects"),
        ] {
            let parsed: Bucket = text.parse().unwrap();
            assert_eq!(
                (parsed.bucket.as_str(), parsed.prefix.as_str()),
                (bucket, prefix)
            );
        }
        for bad in ["b", "s3:b", "s3://", "s3:///x", "s3://a b", "gs://b"] {
            assert!(bad.parse::<Bucket>().is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_in_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text =
            "[default]\n# mine\naws_access_key_id = A\naws_secret_access_key=b=c\nregion = x\n";
        std::fs::write(file.path(), text).unwrap();
        let keys = credentials(file.path()).unwrap();
        assert_eq!(keys[0], (AmazonS3ConfigKey::AccessKeyId, "A".to_owned()));
        assert_eq!(
            keys[1],
            (AmazonS3ConfigKey::SecretAccessKey, "b=c".to_owned())
        );
        std::fs::write(file.path(), "[default]\n").unwrap();
        assert!(credentials(file.path()).is_err());
        assert!(credentials(Path::new("/nowhere")).is_err());
    }
}
