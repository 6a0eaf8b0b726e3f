//! Parsing of lines as the reference and we write them, several times faster than by a JSON parser.
//!
//! Whatever is written otherwise is left to that parser, and so are all errors.

use cn_clip_data::Id;

/// Powers of ten that a double holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];
/// Digits that an u64 holds.
const DIGITS: usize = 19;

/// Parses `{"<key>": id, "feature": [out.len() numbers]}`.
pub(super) fn parse_line(line: &[u8], key: &str, out: &mut [f32]) -> Option<Id> {
    let mut text = Text(line);
    text.expect(b'{')?;
    text.key(key)?;
    let id = text.id()?;
    text.expect(b',')?;
    text.key("feature")?;
    text.expect(b'[')?;
    let (last, others) = out.split_last_mut()?;
    for value in others {
        *value = text.number()?;
        text.expect(b',')?;
    }
    *last = text.number()?;
    text.expect(b']')?;
    text.expect(b'}')?;
    text.skip_space();
    text.0.is_empty().then_some(id)
}

/// What is left of a line.
struct Text<'a>(&'a [u8]);

impl<'a> Text<'a> {
    fn skip_space(&mut self) {
        while let [b' ' | b'\t' | b'\r', rest @ ..] = self.0 {
            self.0 = rest;
        }
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.skip_space();
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        (*first == byte).then_some(())
    }

    fn key(&mut self, key: &str) -> Option<()> {
        self.skip_space();
        self.0 = self.0.strip_prefix(b"\"")?.strip_prefix(key.as_bytes())?.strip_prefix(b"\"")?;
        self.expect(b':')
    }

    fn id(&mut self) -> Option<Id> {
        self.skip_space();
        if let Some(rest) = self.0.strip_prefix(b"\"") {
            let end = rest.iter().position(|&byte| matches!(byte, b'"' | b'\\' | 0..=0x1f))?;
            self.0 = &rest[end..];
            self.expect(b'"')?;
            return Some(Id::Text(str::from_utf8(&rest[..end]).ok()?.to_owned()));
        }
        let end = self.0.iter().position(|byte| !matches!(byte, b'-' | b'0'..=b'9'))?;
        let (digits, rest) = self.0.split_at(end);
        let text = str::from_utf8(digits).ok()?;
        let value: i64 = text.parse().ok()?;
        self.0 = rest;
        // Not 007, which is no JSON.
        (value.to_string() == text).then_some(Id::Int(value))
    }

    /// A JSON number, as a double rounded to single precision; none if that is infinite.
    fn number(&mut self) -> Option<f32> {
        self.skip_space();
        let start = self.0;
        let negative = self.0.first() == Some(&b'-');
        self.0 = &self.0[usize::from(negative)..];
        let mut mantissa = 0;
        let mut digits = 0;
        match self.0 {
            [b'0', rest @ ..] => self.0 = rest,
            _ => digits = Some(self.digits(&mut mantissa)).filter(|&digits| digits > 0)?,
        }
        let mut scale = 0;
        if let Some(rest) = self.0.strip_prefix(b".") {
            self.0 = rest;
            if mantissa == 0 {
                while let [b'0', rest @ ..] = self.0 {
                    self.0 = rest;
                    scale += 1;
                }
            }
            let fraction = self.digits(&mut mantissa);
            digits += fraction;
            scale += fraction as i32;
            if scale == 0 {
                return None;
            }
        }
        if let [b'e' | b'E', rest @ ..] = self.0 {
            scale -= self.exponent(rest)?;
        }
        let power = usize::try_from(scale).ok().and_then(|scale| POWERS.get(scale));
        if let Some(power) = power.filter(|_| digits <= DIGITS) {
            // Two roundings: within three units of the last place of the nearest double. Both
            // become the same single but near the middle between two singles.
            let value = mantissa as f64 / power;
            let middle = 1 << 28;
            if (value.to_bits() & (2 * middle - 1)).abs_diff(middle) > 8 {
                return Some(if negative { -value } else { value } as f32);
            }
        }
        let text = str::from_utf8(&start[..start.len() - self.0.len()]).ok()?;
        let value = text.parse::<f64>().ok()? as f32;
        value.is_finite().then_some(value)
    }

    fn exponent(&mut self, rest: &'a [u8]) -> Option<i32> {
        let (negative, rest) = match rest {
            [sign @ (b'-' | b'+'), rest @ ..] => (*sign == b'-', rest),
            _ => (false, rest),
        };
        self.0 = rest;
        let mut value = 0;
        let digits = self.digits(&mut value);
        let value = i32::try_from(value).ok().filter(|_| (1..=4).contains(&digits))?;
        Some(if negative { -value } else { value })
    }

    /// Appends digits to a number, which overflows after [`DIGITS`] of them; returns how many.
    fn digits(&mut self, number: &mut u64) -> usize {
        let length = self.0.len();
        while let Some((eight, rest)) = self.0.split_first_chunk() {
            let Some(value) = eight_digits(u64::from_le_bytes(*eight)) else { break };
            *number = number.wrapping_mul(100_000_000).wrapping_add(value);
            self.0 = rest;
        }
        while let [digit @ b'0'..=b'9', rest @ ..] = self.0 {
            *number = number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
            self.0 = rest;
        }
        length - self.0.len()
    }
}

/// The number that eight bytes of text make, the first in the lowest byte.
fn eight_digits(text: u64) -> Option<u64> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let digits = text.wrapping_sub(ONES * 0x30);
    // No byte is below '0', none above '9'.
    if (digits | (digits.wrapping_add(ONES * 0x76))) & (ONES * 0x80) != 0 {
        return None;
    }
    // Neighbours are joined: to pairs, fours, then all.
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8) & 0x00ff_00ff_00ff_00ff;
    let fours = pairs.wrapping_mul(100).wrapping_add(pairs >> 16) & 0x0000_ffff_0000_ffff;
    Some(fours.wrapping_mul(10_000).wrapping_add(fours >> 32) & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python_json::python_float;

    fn number(text: &str) -> Option<f32> {
        let mut line = Text(text.as_bytes());
        let value = line.number()?;
        line.0.is_empty().then_some(value)
    }

    fn noise() -> impl FnMut() -> u64 {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        }
    }

    #[test]
    fn numbers_are_those_of_the_library() {
        let mut next = noise();
        let check = |text: &str| {
            let expected = text.parse::<f64>().unwrap() as f32;
            assert_eq!(number(text).map(f32::to_bits), Some(expected.to_bits()), "{text}");
        };
        for _ in 0..200_000 {
            // Widened singles of usual and of all magnitudes.
            let usual = (next() as u32) as f32 / 2.0_f32.powi(34) - 0.125;
            check(&python_float(f64::from(usual)));
            let any = f32::from_bits(next() as u32);
            if any.is_finite() {
                check(&python_float(f64::from(any)));
                check(&any.to_string());
            }
            // The middle between two singles, and its neighbours among the doubles.
            let middle = f64::from(usual).to_bits() + (1 << 28);
            for bits in [middle - 1, middle, middle + 1] {
                check(&python_float(f64::from_bits(bits)));
            }
            // Any decimal.
            let digits = next().to_string();
            let (whole, fraction) = digits.split_at(1 + (next() % 3) as usize);
            check(&format!("{}.{fraction}e-{}", whole.trim_start_matches('0').len(), next() % 9));
        }
        for text in ["0", "-0", "0.0", "-0.0e5", "0e0", "123456789012345678901234567890", "1e38"] {
            check(text);
        }
    }

    #[test]
    fn what_is_no_number_of_json_or_no_single_is_left_to_others() {
        for text in [
            "", "-", "01", "00", "1.", ".5", "1e", "1e+", "+1", "1.e5", "0x1", "NaN", "1e39",
            "-1e400", "1 2", "--1", "1e00001", "1:0", "1/2",
        ] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn lines_as_they_are_written_are_parsed() {
        let mut out = [0.0; 2];
        let mut line = |text: &str| {
            let id = parse_line(text.as_bytes(), "image_id", &mut out);
            id.map(|id| (id, out))
        };
        let expected = [0.5, -1.0];
        for (text, id) in [
            ("{\"image_id\": 7, \"feature\": [0.5, -1.0]}", Id::Int(7)),
            ("{\"image_id\":-7,\"feature\":[0.5,-1]}\r", Id::Int(-7)),
            (" { \"image_id\" : \"a/图.jpg\" , \"feature\" : [ 5e-1 , -1 ] } ", "a/图.jpg".into()),
            ("{\"image_id\": \"7\", \"feature\": [0.5, -1.0]}", Id::Text("7".to_owned())),
        ] {
            assert_eq!(line(text), Some((id, expected)), "{text}");
        }
        for text in [
            "",
            "{\"text_id\": 7, \"feature\": [0.5, -1.0]}",
            "{\"image_id\": 07, \"feature\": [0.5, -1.0]}",
            "{\"image_id\": 1-, \"feature\": [0.5, -1.0]}",
            "{\"image_id\": \"a\\u0041\", \"feature\": [0.5, -1.0]}",
            "{\"image_id\": \"a\nb\", \"feature\": [0.5, -1.0]}",
            "{\"image_id\": 9223372036854775808, \"feature\": [0.5, -1.0]}",
            "{\"image_id\": 7, \"feature\": [0.5]}",
            "{\"image_id\": 7, \"feature\": [0.5, -1.0, 2.0]}",
            "{\"image_id\": 7, \"feature\": [0.5, -1.0]",
            "{\"image_id\": 7, \"feature\": [0.5, -1.0]} x",
            "{\"image_id\": 7, \"feature\": [0.5, -1.0], \"a\": 1}",
        ] {
            assert_eq!(line(text), None, "{text}");
        }
    }

    #[test]
    fn eight_digits_are_a_number() {
        let parse =
            |text: &str| eight_digits(u64::from_le_bytes(text.as_bytes().try_into().unwrap()));
        assert_eq!(parse("12345678"), Some(12_345_678));
        assert_eq!(parse("00000009"), Some(9));
        for text in ["1234567:", "/2345678", "1234 678", "12345.78", "\u{7f}2345678", "图99999"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
