//! JSON as Python's `json.dumps` prints it, so that files compare byte for byte with the
//! reference's: `", "` and `": "` as separators, ASCII only, floats as `repr` of a double.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// Writes `value` on one line, without a line end.
///
/// `f32` values are widened to doubles first, as Python does. NaN and infinity, which JSON has not,
/// become `null`: refuse them before.
///
/// # Errors
/// Those of the writer, and those of `value`'s own `Serialize`.
pub fn write<W: Write, T: Serialize + ?Sized>(writer: W, value: &T) -> serde_json::Result<()> {
    value.serialize(&mut Serializer::with_formatter(writer, PythonFormatter))
}

/// Prints a finite double as Python's `repr`: the fewest digits that read back to the same value,
/// ties to even, and an exponent of at least two digits below 1e-4 and from 1e16 on.
///
/// The standard library's own printing picks the other neighbour in ties, which widened `f32` values
/// meet about once in 200; hence `zmij`.
pub fn python_float(value: f64) -> String {
    let mut buffer = zmij::Buffer::new();
    let text = buffer.format_finite(value);
    if let Some((mantissa, exponent)) = text.split_once("e-") {
        return format!("{mantissa}e-{exponent:0>2}");
    }
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    // zmij goes over to exponents one power of ten later than Python.
    match digits.strip_prefix("0.0000") {
        Some(digits) if digits.len() > 1 => format!("{sign}{}.{}e-05", &digits[..1], &digits[1..]),
        Some(digits) => format!("{sign}{digits}e-05"),
        None => text.to_owned(),
    }
}

struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn write_f32<W: ?Sized + Write>(&mut self, writer: &mut W, value: f32) -> io::Result<()> {
        self.write_f64(writer, f64::from(value))
    }

    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        let magnitude = value.abs();
        if (1e-4..1e16).contains(&magnitude) || magnitude == 0.0 {
            return writer.write_all(zmij::Buffer::new().format_finite(value).as_bytes());
        }
        writer.write_all(python_float(value).as_bytes())
    }

    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for part in fragment.split_inclusive(|c: char| !(' '..='~').contains(&c)) {
            let plain = part.trim_end_matches(|c: char| !(' '..='~').contains(&c));
            writer.write_all(plain.as_bytes())?;
            for unit in part[plain.len()..].encode_utf16() {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json<T: Serialize + ?Sized>(value: &T) -> String {
        let mut out = Vec::new();
        write(&mut out, value).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn floats_print_as_pythons_repr() {
        for (value, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.0001, "0.0001"),
            (0.00012, "0.00012"),
            (0.00001, "1e-05"),
            (-0.000015, "-1.5e-05"),
            (0.00009999, "9.999e-05"),
            (1e-6, "1e-06"),
            (1.25e-10, "1.25e-10"),
            (5e-324, "5e-324"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-1.5e300, "-1.5e+300"),
            (123_456_789.125, "123456789.125"),
        ] {
            assert_eq!(python_float(value), expected);
            assert_eq!(json(&value), expected);
        }
    }

    #[test]
    fn ties_between_shortest_forms_go_to_the_even_digit() {
        // Exactly 0.243854522705078125: the 17-digit forms on both sides are equally near.
        assert_eq!(python_float(63925.0 / 262144.0), "0.24385452270507812");
        assert_eq!(python_float(f64::from(0.140_338_9_f32)), "0.14033889770507812");
    }

    #[test]
    fn single_precision_is_widened() {
        assert_eq!(json(&[0.1_f32, 1e-5]), "[0.10000000149011612, 9.999999747378752e-06]");
    }

    #[test]
    fn separators_and_escapes_are_pythons() {
        let value = serde_json::json!({"a": ["x\"\\\n\u{1}\u{7f}é文😀.", 1, null, true]});
        assert_eq!(
            json(&value),
            r#"{"a": ["x\"\\\n\u0001\u007f\u00e9\u6587\ud83d\ude00.", 1, null, true]}"#
        );
        assert_eq!(json(&serde_json::json!({})), "{}");
        assert_eq!(json(&serde_json::json!({"a": [], "b": 2})), r#"{"a": [], "b": 2}"#);
    }
}
