//! Parses the start-up parameter `options`, which contains command-line switches of a server process.
//!
//! It exists because a setting that a client passes there must be recognized as the client's own. The
//! rules are those of PostgreSQL's `pg_split_opts` and `process_postgres_switches`. It must never print
//! a value.

/// Switches with an argument. [PostgreSQL `postgres.c`, process_postgres_switches]
const WITH_ARGUMENT: &[u8] = b"BCcDdfhkNprStvW-";

/// A setting in `options`: its name as written, and its value.
pub type OptionSetting = (Vec<u8>, Vec<u8>);

/// The settings in `options` (`-c name=value` and `--name=value`), in the order given, with dashes in
/// names replaced by underscores as Postgres does.
///
/// `None` for a text that is more than a list of settings: another switch, or a setting without a value.
#[must_use]
pub fn parse_settings(options: &[u8]) -> Option<Vec<OptionSetting>> {
    let (settings, only_settings) = scan(options);
    only_settings.then_some(settings)
}

/// The settings in `options`, whatever else it contains.
#[must_use]
pub fn find_settings(options: &[u8]) -> Vec<OptionSetting> {
    scan(options).0
}

fn scan(options: &[u8]) -> (Vec<OptionSetting>, bool) {
    let mut settings = Vec::new();
    let mut only_settings = true;
    let mut words = split(options).into_iter();
    while let Some(word) = words.next() {
        let Some(mut switches) = word.strip_prefix(b"-").filter(|rest| !rest.is_empty()) else {
            only_settings = false;
            continue;
        };
        while let Some((&switch, rest)) = switches.split_first() {
            switches = rest;
            if !WITH_ARGUMENT.contains(&switch) {
                only_settings = false;
                continue;
            }
            let argument = match rest {
                // `--` takes the rest of its own word only.
                [] if switch == b'-' => None,
                [] => words.next(),
                rest => Some(rest.to_owned()),
            };
            let setting = argument.filter(|_| matches!(switch, b'c' | b'-'));
            match setting.and_then(|text| split_setting(&text)) {
                Some(setting) => settings.push(setting),
                None => only_settings = false,
            }
            break;
        }
    }
    (settings, only_settings)
}

fn split_setting(text: &[u8]) -> Option<OptionSetting> {
    let at = text.iter().position(|byte| *byte == b'=')?;
    let (name, value) = text.split_at_checked(at)?;
    let dashes = |byte: &u8| if *byte == b'-' { b'_' } else { *byte };
    Some((
        name.iter().map(dashes).collect(),
        value.get(1..)?.to_owned(),
    ))
}

/// Splits at white space; a backslash makes the next byte part of a word.
fn split(options: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = options.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => words.extend(word.take()),
            b'\\' => {
                let word = word.get_or_insert_default();
                word.extend(bytes.next());
            }
            byte => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(settings: Vec<OptionSetting>) -> Vec<String> {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        settings
            .into_iter()
            .map(|(name, value)| format!("{}={}", text(name), text(value)))
            .collect()
    }

    #[test]
    fn finds_settings_in_all_forms() {
        for (options, expected) in [
            ("", &[][..]),
            ("-c a=1", &["a=1"]),
            ("-ca=1 --b-c=2", &["a=1", "b_c=2"]),
            ("  -c\ta=1\n", &["a=1"]),
            (r"-c search_path=a,\ b\\", &[r"search_path=a, b\"]),
            ("-c a= -c b==", &["a=", "b=="]),
        ] {
            let found = parse_settings(options.as_bytes()).unwrap();
            assert_eq!(shown(found), expected, "{options}");
        }
    }

    #[test]
    fn finds_settings_beside_other_switches() {
        for (options, expected) in [
            ("-d 5 -c a=1", &["a=1"][..]),
            ("-ec a=1", &["a=1"]),
            ("-e -S 64 word --a=1", &["a=1"]),
            ("-d -c a=1", &[]),
            ("-- a=1", &[]),
            ("-c", &[]),
            ("-c a", &[]),
            ("-", &[]),
        ] {
            let options = options.as_bytes();
            assert_eq!(parse_settings(options), None);
            assert_eq!(shown(find_settings(options)), expected, "{options:?}");
        }
    }
}
