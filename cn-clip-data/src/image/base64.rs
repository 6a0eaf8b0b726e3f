use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::ImageError;

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Decodes standard and url-safe base64, also mixed, with or without padding; ASCII white space is
/// ignored, as Python's `base64.urlsafe_b64decode` does.
///
/// # Errors
/// [`ImageError::Base64`] for any other byte or an impossible length.
pub fn decode_base64(text: &[u8]) -> Result<Vec<u8>, ImageError> {
    let decode = |text: &[u8]| {
        LENIENT.decode(text).map_err(|error| ImageError::Base64 { reason: error.to_string() })
    };
    let plain = text.iter().all(|byte| !matches!(byte, b'-' | b'_') && !byte.is_ascii_whitespace());
    if plain {
        return decode(text);
    }
    let standard: Vec<u8> = text
        .iter()
        .filter(|byte| !byte.is_ascii_whitespace())
        .map(|&byte| match byte {
            b'-' => b'+',
            b'_' => b'/',
            other => other,
        })
        .collect();
    decode(&standard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_both_alphabets_padding_or_not_and_white_space() {
        let bytes = [0xfb, 0xef, 0xff, 0x01];
        for text in ["++//AQ==", "--__AQ==", "+-/_AQ", " ++//\r\n\tAQ== \n", "++//AR=="] {
            assert_eq!(decode_base64(text.as_bytes()).unwrap(), bytes, "{text}");
        }
        assert!(decode_base64(b"").unwrap().is_empty());
    }

    #[test]
    fn rejects_foreign_bytes_and_impossible_lengths() {
        for text in ["AB*D", "A", "ABCDE", "=", "AB\u{e9}=", "AB=C"] {
            let error = decode_base64(text.as_bytes()).unwrap_err();
            assert!(matches!(error, ImageError::Base64 { .. }), "{text}: {error}");
        }
    }
}
