//! The one question the program asks.

use super::Console;
use std::process::{Command, Stdio};

/// Asks until the answer is yes or no, in the user's language; the end of input is a no.
pub(super) fn confirm(console: &mut Console<'_>) -> bool {
    let (yes, no) = answers();
    loop {
        let _ = write!(console.output, "Are you sure you want to proceed? [y/n] ");
        let _ = console.output.flush();
        let mut line = Vec::new();
        match console.input.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => {
                console.say("");
                return false;
            }
            Ok(_) => {}
        }
        match String::from_utf8_lossy(&line).chars().next() {
            Some(c) if yes.contains(c) => return true,
            Some(c) if no.contains(c) => return false,
            _ => {}
        }
    }
}

/// The letters that begin a yes and a no.
fn answers() -> (String, String) {
    let plain = || ("yY".to_owned(), "nN".to_owned());
    let locale = ["LC_ALL", "LC_MESSAGES", "LANG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    match locale {
        Some(name)
            if !(name == "C" || name == "POSIX" || name.starts_with("C.") || name.starts_with("en")) =>
        {
            locale_answers().unwrap_or_else(plain)
        }
        _ => plain(),
    }
}

/// As the system's locale says, through locale(1).
fn locale_answers() -> Option<(String, String)> {
    let output = Command::new("locale")
        .args(["yesexpr", "noexpr"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut lines = text.lines().map(first_letters);
    match (lines.next()?, lines.next()?) {
        (yes, no) if !yes.is_empty() && !no.is_empty() => Some((yes, no)),
        _ => None,
    }
}

/// The letters an expression like `^[+1yY]` lets an answer begin with.
fn first_letters(expression: &str) -> String {
    expression
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map(|(letters, _)| letters.to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(input: &str) -> (bool, String) {
        let mut output = Vec::new();
        let mut input = input.as_bytes();
        let agreed = confirm(&mut Console {
            input: &mut input,
            output: &mut output,
        });
        (agreed, String::from_utf8(output).unwrap())
    }

    #[test]
    fn answers_are_yes_no_or_asked_for_again() {
        assert!(ask("y\n").0);
        assert!(ask("Yes please\n").0);
        assert!(!ask("n\n").0);
        assert!(!ask("NO\n").0);
        let (agreed, output) = ask("\nmaybe\n y\ny\n");
        assert!(agreed);
        assert_eq!(output.matches("[y/n]").count(), 4);
    }

    #[test]
    fn the_end_of_input_is_a_no() {
        let (agreed, output) = ask("");
        assert!(!agreed);
        assert!(output.ends_with("[y/n] \n"));
    }

    #[test]
    fn expressions_of_locales_give_their_letters() {
        assert_eq!(first_letters("^[yY]"), "yY");
        assert_eq!(first_letters("^[+1jJyY]"), "+1jJyY");
        assert_eq!(first_letters("^(ja)"), "");
    }
}
