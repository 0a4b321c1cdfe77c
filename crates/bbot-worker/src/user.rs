//! The unprivileged user that builds run as.

use std::fs;

/// The user's name where there is one.
const NAME: &str = "build";

/// Its number where there is no such name: the first ordinary user of most systems.
const NUMBER: u32 = 1000;

/// Who builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl User {
    /// The user of this system.
    pub(crate) fn find() -> Self {
        // Read by hand: the C library would load modules to do it, which a static program should not.
        Self::in_passwd(&fs::read_to_string("/etc/passwd").unwrap_or_default())
    }

    fn in_passwd(passwd: &str) -> Self {
        let mut by_number = None;
        for line in passwd.lines() {
            let mut fields = line.split(':');
            let (Some(name), Some(_), Some(uid), Some(gid)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse()) else {
                continue;
            };
            let user = Self {
                name: name.to_owned(),
                uid,
                gid,
            };
            if name == NAME {
                return user;
            }
            if uid == NUMBER && by_number.is_none() {
                by_number = Some(user);
            }
        }
        by_number.unwrap_or_else(|| Self {
            name: NAME.to_owned(),
            uid: NUMBER,
            gid: NUMBER,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_wins_over_the_number() {
        let user = |passwd: &str| {
            let user = User::in_passwd(passwd);
            (user.name, user.uid, user.gid)
        };
        let passwd = "root:x:0:0::/root:/bin/sh\nanna:x:1000:100::/home/anna:/bin/sh\nbuild:x:1001:1002::/:/bin/sh\n";
        assert_eq!(user(passwd), ("build".to_owned(), 1001, 1002));
        assert_eq!(
            user(&passwd.replace("build", "other")),
            ("anna".to_owned(), 1000, 100)
        );
        assert_eq!(user("rubbish\nx:y:z\n"), ("build".to_owned(), 1000, 1000));
    }
}
