//! What is printed of an error.

/// The error and its causes, without those that it tells already.
pub fn message(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !message.contains(&cause) {
            message.push_str(": ");
            message.push_str(&cause);
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn no_cause_is_told_twice() {
        let error = anyhow!("no such file").context("a.pt: no such file").context("loading");
        assert_eq!(message(&error), "loading: a.pt: no such file");
    }
}
