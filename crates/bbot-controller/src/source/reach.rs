//! Where a source may be fetched from: which URLs, and which addresses behind their names.
//!
//! A URL comes from whoever submits. It must not make the controller talk to what only the controller's own
//! host can reach: a service on its loopback, a neighbour in its network, a cloud's metadata service.

use std::net::{IpAddr, SocketAddr};

/// Which addresses may be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addresses {
    /// Those that anybody on the internet can reach.
    Public,
    /// Any.
    All,
}

/// A URL that may be fetched from, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
}

/// Checks the form of a URL: https, a host, no user, nothing that a shell, git or curl reads differently.
pub(super) fn target(url: &str) -> Result<Target, String> {
    let rest = url
        .strip_prefix("https://")
        .ok_or("only https:// is fetched")?;
    if !url.bytes().all(|b| b.is_ascii_graphic()) || url.contains(['"', '\\', '\'', '<', '>', '`'])
    {
        return Err("the URL has characters that must be percent-encoded".to_owned());
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err("a user name or password in the URL is not taken".to_owned());
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (
            host,
            port.parse()
                .map_err(|_| format!("{port:?} is not a port"))?,
        ),
        _ => (authority, 443),
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    let name_like = !bare.is_empty()
        && bare
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c));
    if !name_like || bare.starts_with('-') {
        return Err(format!("{host:?} is not a host name"));
    }
    Ok(Target {
        host: bare.to_owned(),
        port,
    })
}

/// Whether anybody on the internet can reach the address.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            !(v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4.is_multicast()
                || v4.is_documentation()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 198 && (b == 18 || b == 19)))
        }
        IpAddr::V6(v6) => {
            let s = v6.segments();
            // An IPv4 address in another dress: mapped, NAT64, 6to4.
            let inner = match s {
                [0, 0, 0, 0, 0, 0xffff, a, b] | [0x64, 0xff9b, 0, 0, 0, 0, a, b] => Some((a, b)),
                [0x2002, a, b, ..] => Some((a, b)),
                _ => None,
            };
            if let Some((a, b)) = inner {
                let ([a, b], [c, d]) = (a.to_be_bytes(), b.to_be_bytes());
                return is_public(IpAddr::from([a, b, c, d]));
            }
            // Global unicast is 2000::/3; of it, documentation and Teredo are nobody's.
            s[0] & 0xe000 == 0x2000 && !(s[0] == 0x2001 && (s[1] == 0xdb8 || s[1] == 0))
        }
    }
}

/// The address of the target's name; every one that the name has must be allowed.
pub(super) async fn resolve(target: &Target, allowed: Addresses) -> Result<IpAddr, String> {
    let found: Vec<SocketAddr> = tokio::net::lookup_host((target.host.as_str(), target.port))
        .await
        .map_err(|e| format!("cannot find {}: {e}", target.host))?
        .collect();
    let first = found
        .first()
        .ok_or_else(|| format!("{} has no address", target.host))?
        .ip();
    if allowed == Addresses::Public
        && let Some(private) = found.iter().map(SocketAddr::ip).find(|ip| !is_public(*ip))
    {
        return Err(format!(
            "{} is at {private}, which is not a public address; --allow-private-sources allows it",
            target.host
        ));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (url, expected) in [
            ("https://example.org/a.git", Ok(("example.org", 443))),
            ("https://example.org:8443/a", Ok(("example.org", 8443))),
            ("https://[2001:db8::1]/a", Ok(("2001:db8::1", 443))),
            ("https://[2001:db8::1]:444/a", Ok(("2001:db8::1", 444))),
            ("http://example.org/a", Err("only https:// is fetched")),
            ("git@example.org:a", Err("only https:// is fetched")),
            ("ext::sh -c id", Err("only https:// is fetched")),
            (
                "https://user:pw@example.org/a",
                Err("a user name or password in the URL is not taken"),
            ),
            (
                "https://exa mple.org/",
                Err("the URL has characters that must be percent-encoded"),
            ),
            (
                "https://example.org/\n",
                Err("the URL has characters that must be percent-encoded"),
            ),
            ("https:///a", Err("\"\" is not a host name")),
            ("https://-x/a", Err("\"-x\" is not a host name")),
            ("https://example.org:http/a", Err("\"http\" is not a port")),
        ] {
            let got = target(url);
            match expected {
                Ok((host, port)) => assert_eq!(
                    got,
                    Ok(Target {
                        host: host.to_owned(),
                        port
                    }),
                    "{url}"
                ),
                Err(what) => assert_eq!(got, Err(what.to_owned()), "{url}"),
            }
        }
    }

    #[test]
    fn addresses() {
        for (address, expected) in [
            ("127.0.0.1", false),
            ("10.1.2.3", false),
            ("172.16.0.1", false),
            ("192.168.1.1", false),
            ("169.254.169.254", false),
            ("100.64.0.1", false),
            ("0.0.0.0", false),
            ("198.18.0.1", false),
            ("240.0.0.1", false),
            ("140.82.121.3", true),
            ("::1", false),
            ("::", false),
            ("fe80::1", false),
            ("fd00::1", false),
            ("::ffff:127.0.0.1", false),
            ("64:ff9b::7f00:1", false),
            ("2002:7f00:1::", false),
            ("2606:50c0:8000::153", true),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), expected, "{address}");
        }
    }
}
