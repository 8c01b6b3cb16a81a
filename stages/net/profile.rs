//! The files in which AWS's own tools keep credentials: `~/.aws/credentials` and `~/.aws/config`. Independent of what they are for.

use std::{collections::BTreeMap, fs, path::PathBuf};

use crate::StageError;

/// The variables that a profile can stand for, with the names of the files.
const NAMES: [(&str, &str); 5] = [
    ("AWS_ACCESS_KEY_ID", "aws_access_key_id"),
    ("AWS_SECRET_ACCESS_KEY", "aws_secret_access_key"),
    ("AWS_SESSION_TOKEN", "aws_session_token"),
    ("AWS_REGION", "region"),
    ("AWS_ENDPOINT_URL", "endpoint_url"),
];
/// The first of these are credentials: all of them come from one place.
const CREDENTIALS: usize = 3;
/// Ways to credentials that are not known here.
const UNKNOWN: [&str; 5] =
    ["sso_session", "sso_start_url", "role_arn", "credential_process", "web_identity_token_file"];
/// The largest file in bytes.
const LARGEST: u64 = 1 << 20;

/// What a profile says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Profile(BTreeMap<String, String>);

impl Profile {
    /// Reads the profile that `AWS_PROFILE` names, or the one named `default`.
    ///
    /// # Errors
    /// If the named profile is in none of the files, or gives credentials in a way that is not known here.
    pub(super) fn of(var: impl Fn(&str) -> Option<String>) -> Result<Self, StageError> {
        let set = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let file = |variable: &str, name: &str| {
            let path =
                set(variable).map(PathBuf::from).or_else(|| Some(PathBuf::from(set("HOME")?).join(".aws").join(name)));
            let path = path.filter(|path| path.metadata().is_ok_and(|found| found.is_file() && found.len() <= LARGEST));
            path.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default()
        };
        let (named, has_keys) = (set("AWS_PROFILE"), set("AWS_ACCESS_KEY_ID").is_some());
        let name = named.clone().unwrap_or_else(|| "default".into());
        let found =
            Self::read(&name, &file("AWS_CONFIG_FILE", "config"), &file("AWS_SHARED_CREDENTIALS_FILE", "credentials"));
        let Some(profile) = found else {
            return match named {
                // The environment has all that is needed.
                Some(name) if !has_keys => Err(StageError::failed(
                    format!("there is no profile `{}` in ~/.aws/credentials or ~/.aws/config", name.escape_debug()),
                    "correct AWS_PROFILE",
                )),
                _ => Ok(Self::default()),
            };
        };
        let unknown = UNKNOWN.iter().find(|key| profile.0.contains_key(**key));
        if let Some(key) = unknown.filter(|_| !has_keys && !profile.0.contains_key(NAMES[0].1)) {
            return Err(StageError::failed(
                format!(
                    "the profile `{}` gets its credentials by `{key}`, which is not known here",
                    name.escape_debug()
                ),
                "set them in the environment, as with `eval \"$(aws configure export-credentials --format env)\"`",
            ));
        }
        Ok(profile)
    }

    /// Reads a profile from the texts of both files; what `credentials` says goes first. `None` if neither has it.
    fn read(name: &str, config: &str, credentials: &str) -> Option<Self> {
        let mut found = None;
        let headers = [format!("profile {name}"), name.into()];
        // In `config`, only the default profile has no word before its name.
        let in_config = if name == "default" { &headers[..] } else { &headers[..1] };
        for (text, headers) in [(config, in_config), (credentials, &headers[1..])] {
            let mut is_inside = false;
            for line in text.lines() {
                if let Some(header) = line.trim().strip_prefix('[').and_then(|line| line.split(']').next()) {
                    let header = header.split_whitespace().collect::<Vec<_>>().join(" ");
                    is_inside = headers.contains(&header);
                    if is_inside {
                        found.get_or_insert_with(BTreeMap::new);
                    }
                    continue;
                }
                // What is indented belongs to the line before it, and comments are lines of their own.
                let is_entry = is_inside && !line.starts_with([' ', '\t', '#', ';']);
                if let (true, Some((key, value)), Some(found)) = (is_entry, line.split_once('='), &mut found) {
                    found.insert(key.trim().to_ascii_lowercase(), value.trim().to_string());
                }
            }
        }
        found.map(Self)
    }

    /// The value of a variable that the environment, `var`, does not have. Credentials are never mixed.
    pub(super) fn get(&self, variable: &str, var: impl Fn(&str) -> Option<String>) -> Option<String> {
        let at = NAMES.iter().position(|(name, _)| *name == variable)?;
        let has = |name: &str| var(name).is_some_and(|value| !value.trim().is_empty());
        if at < CREDENTIALS && NAMES[..2].iter().any(|(name, _)| has(name)) {
            return None;
        }
        self.0.get(NAMES[at].1).cloned()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const CONFIG: &str = "[default]\nregion = eu-west-1\n# region = no\n[profile  lab]\nregion=eu-north-1\nendpoint_url = \
                          https://s3.lab\ns3 =\n  region = no\n[profile sso]\nsso_session = x\n[lab]\nregion = no\n";
    const CREDENTIALS: &str = "[lab]\naws_access_key_id = LAB\naws_secret_access_key = a=b\n\n[default]\nAWS_Access_Key_Id = \
                               ME\naws_secret_access_key = s\naws_session_token = t\n";

    /// Variables, with files that have these texts.
    fn profile(
        folder: &tempfile::TempDir,
        more: &[(&str, &str)],
    ) -> (Result<Profile, StageError>, BTreeMap<String, String>) {
        let path = |name: &str| folder.path().join(name);
        fs::write(path("config"), CONFIG).unwrap();
        fs::write(path("credentials"), CREDENTIALS).unwrap();
        let mut variables = BTreeMap::from([
            ("AWS_CONFIG_FILE".to_string(), path("config").display().to_string()),
            ("AWS_SHARED_CREDENTIALS_FILE".to_string(), path("credentials").display().to_string()),
        ]);
        variables.extend(more.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())));
        (Profile::of(|name| variables.get(name).cloned()), variables)
    }

    #[test]
    fn a_profile_gives_what_the_environment_lacks_and_credentials_are_not_mixed() {
        let folder = tempfile::tempdir().unwrap();
        let values = |more: &[(&str, &str)]| {
            let (profile, variables) = profile(&folder, more);
            let profile = profile.unwrap();
            let var = |name: &str| variables.get(name).cloned();
            NAMES.map(|(name, _)| profile.get(name, var).unwrap_or_default()).join(" ")
        };
        assert_eq!(values(&[]), "ME s t eu-west-1 ");
        assert_eq!(values(&[("AWS_PROFILE", "lab")]), "LAB a=b  eu-north-1 https://s3.lab");
        assert_eq!(values(&[("AWS_PROFILE", "lab"), ("AWS_ACCESS_KEY_ID", "x")]), "   eu-north-1 https://s3.lab");
        assert_eq!(values(&[("AWS_PROFILE", "sso"), ("AWS_ACCESS_KEY_ID", "x")]), "    ");
        let empty = Profile::of(|name| (name == "HOME").then(|| folder.path().display().to_string())).unwrap();
        assert_eq!(empty, Profile::default(), "there is no ~/.aws");
    }

    #[test]
    fn a_profile_that_can_not_be_used_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let error = |name: &str| profile(&folder, &[("AWS_PROFILE", name)]).0.unwrap_err().to_string();
        assert!(error("no").contains("there is no profile `no`"));
        assert!(error("sso").contains("by `sso_session`, which is not known here"));
    }
}
