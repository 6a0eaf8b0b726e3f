//! Classes of characters, and normalisation of words.

use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// What the tokenizer does with a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Part of a word.
    Letter,
    /// An ASCII punctuation mark: a word by itself.
    AsciiPunctuation,
    /// A CJK ideograph: a word by itself.
    Ideograph,
    /// A CJK compatibility ideograph: a word by itself, after decomposition.
    Compatibility,
    /// White space.
    Space,
    /// A control or format character.
    Dropped,
}

/// Class of a character.
pub(super) fn kind(c: char) -> Kind {
    match c {
        ' ' | '\t' | '\n' | '\r' => Kind::Space,
        'a'..='z' | 'A'..='Z' | '0'..='9' => Kind::Letter,
        '!'..='~' => Kind::AsciiPunctuation,
        '\u{4e00}'..='\u{9fff}'
        | '\u{3400}'..='\u{4dbf}'
        | '\u{20000}'..='\u{2a6df}'
        | '\u{2a700}'..='\u{2b73f}'
        | '\u{2b740}'..='\u{2b81f}'
        | '\u{2b820}'..='\u{2ceaf}' => Kind::Ideograph,
        '\u{f900}'..='\u{faff}' | '\u{2f800}'..='\u{2fa1f}' => Kind::Compatibility,
        '\u{fffd}' => Kind::Dropped,
        // Python splits at the line and paragraph separators too.
        '\u{2028}' | '\u{2029}' => Kind::Space,
        c => match c.general_category() {
            GeneralCategory::Control | GeneralCategory::Format => Kind::Dropped,
            GeneralCategory::SpaceSeparator => Kind::Space,
            _ => Kind::Letter,
        },
    }
}

/// Lower-cases a word, decomposes it, drops combining marks and splits it at punctuation marks,
/// each of which is a part by itself. `emit` returns `false` to stop.
pub(super) fn words(word: &str, mut emit: impl FnMut(&str) -> bool) {
    let mut part = String::with_capacity(word.len());
    for c in word.to_lowercase().nfd() {
        match c.general_category() {
            GeneralCategory::NonspacingMark => {}
            category if is_punctuation(c, category) => {
                if !part.is_empty() && !emit(&part) {
                    return;
                }
                part.clear();
                if !emit(c.encode_utf8(&mut [0; 4])) {
                    return;
                }
            }
            _ => part.push(c),
        }
    }
    if !part.is_empty() {
        emit(&part);
    }
}

fn is_punctuation(c: char, category: GeneralCategory) -> bool {
    c.is_ascii_punctuation()
        || matches!(
            category,
            GeneralCategory::ConnectorPunctuation
                | GeneralCategory::DashPunctuation
                | GeneralCategory::OpenPunctuation
                | GeneralCategory::ClosePunctuation
                | GeneralCategory::InitialPunctuation
                | GeneralCategory::FinalPunctuation
                | GeneralCategory::OtherPunctuation
        )
}
