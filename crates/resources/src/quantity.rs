//! Kubernetes quantities (`100m`, `1.5Gi`, `3e6`): parsed, compared, printed in canonical form
//! (apimachinery `api/resource`). Precision is one billionth, the largest amount 2⁶³−1, as there.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;
const LIMIT: i128 = i64::MAX as i128 * NANO;
const DECIMAL: [(&str, u32); 10] =
    [("n", 0), ("u", 3), ("m", 6), ("", 9), ("k", 12), ("M", 15), ("G", 18), ("T", 21), ("P", 24), ("E", 27)];
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// The family of suffixes that a quantity was written in, and is printed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `Ki`, `Mi` …
    Binary,
    /// `m`, `k`, `M` …
    Decimal,
    /// `e3`.
    Exponent,
}

/// An amount of something.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

/// Why a text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not of the form number, suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// A suffix that does not exist.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// Several points in the number.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
}

impl Quantity {
    /// So many, whole.
    pub fn new(value: i64, format: Format) -> Self {
        Quantity { nano: i128::from(value) * NANO, format }
    }

    /// So many thousandths.
    pub fn from_milli(value: i64) -> Self {
        Quantity { nano: i128::from(value) * 1_000_000, format: Format::Decimal }
    }

    /// The whole amount, rounded up.
    pub fn value(&self) -> i64 {
        ceiling(self.nano, NANO)
    }

    /// Thousandths, rounded up.
    pub fn milli(&self) -> i64 {
        ceiling(self.nano, 1_000_000)
    }

    /// −1, 0 or 1.
    pub fn signum(&self) -> i32 {
        self.nano.signum() as i32
    }

    /// The sum, in this quantity's format.
    #[must_use]
    pub fn plus(&self, other: &Quantity) -> Self {
        let format = if self.nano == 0 { other.format } else { self.format };
        Quantity { nano: (self.nano + other.nano).clamp(-LIMIT, LIMIT), format }
    }

    /// The difference, in this quantity's format.
    #[must_use]
    pub fn minus(&self, other: &Quantity) -> Self {
        self.plus(&Quantity { nano: -other.nano, format: other.format })
    }
}

fn ceiling(nano: i128, unit: i128) -> i64 {
    let rounded = nano.div_euclid(unit) + i128::from(nano.rem_euclid(unit) != 0);
    rounded.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl FromStr for Quantity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        if !number.bytes().any(|b| b.is_ascii_digit()) {
            return Err(if number.is_empty() { Error::Format } else { Error::Numeric });
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') {
            return Err(Error::Numeric);
        }
        let (format, multiplier) = multiplier(suffix)?;
        let nano = scale(whole, fraction, multiplier);
        Ok(Quantity { nano: if negative { -nano } else { nano }, format })
    }
}

enum Multiplier {
    /// 2 to the power.
    Two(u32),
    /// 10 to the power.
    Ten(i32),
}

fn multiplier(suffix: &str) -> Result<(Format, Multiplier), Error> {
    if let Some(index) = BINARY.iter().skip(1).position(|s| *s == suffix) {
        return Ok((Format::Binary, Multiplier::Two(10 * (index as u32 + 1))));
    }
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok((Format::Decimal, Multiplier::Ten(*exponent as i32 - 9)));
    }
    let exponent = suffix.strip_prefix(['e', 'E']);
    match exponent.map(|e| e.strip_prefix('+').unwrap_or(e).parse::<i32>()) {
        Some(Ok(exponent)) => Ok((Format::Exponent, Multiplier::Ten(exponent))),
        _ if suffix.chars().all(|c| "eEinumkKMGTP+-0123456789".contains(c)) => Err(Error::Suffix),
        _ => Err(Error::Format),
    }
}

/// `whole.fraction × multiplier` in billionths, rounded up, capped.
fn scale(whole: &str, fraction: &str, multiplier: Multiplier) -> i128 {
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    let (two, ten) = match multiplier {
        Multiplier::Two(two) => (two, 0),
        Multiplier::Ten(ten) => (0, ten),
    };
    let exponent = i64::from(ten) + 9 - fraction.len() as i64;
    // Beyond 60 places everything is the cap or the smallest amount; this also bounds the work.
    if digits.len() as i64 + exponent > 40 {
        return LIMIT;
    }
    if digits.len() as i64 + exponent < -20 {
        return 1;
    }
    // Digits that cannot fit are only looked at for rounding up.
    let kept = digits.len().min(28);
    let lost = digits[kept..].bytes().any(|b| b != b'0');
    let exponent = exponent + (digits.len() - kept) as i64;
    let Some(mut amount) = digits[..kept].parse::<i128>().ok() else { return LIMIT };
    amount += i128::from(lost);
    match amount.checked_mul(1 << two) {
        Some(product) => amount = product,
        None => return LIMIT,
    }
    if exponent >= 0 {
        let factor = 10_i128.checked_pow(exponent as u32);
        amount = factor.and_then(|f| amount.checked_mul(f)).unwrap_or(LIMIT);
    } else {
        match 10_i128.checked_pow((-exponent) as u32) {
            Some(divisor) => amount = amount / divisor + i128::from(amount % divisor != 0),
            None => amount = 1,
        }
    }
    amount.min(LIMIT)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        let whole = self.nano % NANO == 0;
        let small = self.nano.abs() < 1024 * NANO;
        if self.format == Format::Binary && whole && !small {
            let mut amount = self.nano / NANO;
            let mut suffix = 0;
            while amount % 1024 == 0 && suffix + 1 < BINARY.len() {
                amount /= 1024;
                suffix += 1;
            }
            return write!(f, "{amount}{}", BINARY[suffix]);
        }
        let mut amount = self.nano;
        let mut suffix = 0;
        while amount % 1000 == 0 && suffix + 1 < DECIMAL.len() {
            amount /= 1000;
            suffix += 1;
        }
        match (self.format, DECIMAL[suffix].1 as i32 - 9) {
            (Format::Exponent, 0) => write!(f, "{amount}"),
            (Format::Exponent, exponent) => write!(f, "{amount}e{exponent}"),
            _ => write!(f, "{amount}{}", DECIMAL[suffix].0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn canonical_forms() {
        for (text, canonical) in [
            ("0", "0"),
            ("0Ki", "0"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("1024", "1024"),
            ("1000", "1k"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("129M", "129M"),
            ("123Mi", "123Mi"),
            ("1E", "1E"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("1e-3", "1e-3"),
            ("0.0000000001", "1n"),
            ("100u", "100u"),
            ("-1.5", "-1500m"),
            ("+2", "2"),
            (".5", "500m"),
            ("5.", "5"),
            ("99999999999999999999", "9223372036854775807"),
            ("9223372036854775807", "9223372036854775807"),
        ] {
            let parsed: Quantity = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(parsed.to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn malformed() {
        for (text, error) in [
            ("", Error::Format),
            ("abc", Error::Format),
            ("1x", Error::Format),
            ("1kk", Error::Suffix),
            ("1.1.1", Error::Numeric),
            ("1mi", Error::Suffix),
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(error), "{text}");
        }
    }

    #[test]
    fn values_round_up() {
        let cpu: Quantity = "1500m".parse().unwrap();
        assert_eq!((cpu.value(), cpu.milli()), (2, 1500));
        let (binary, decimal): (Quantity, Quantity) = ("1Gi".parse().unwrap(), "1G".parse().unwrap());
        assert!(binary > decimal);
    }

    proptest! {
        #[test]
        fn printing_and_parsing_is_stable(amount in 0_u64..10_000_000_000, fraction in 0_u32..1000, suffix in 0_usize..17) {
            let all = ["", "n", "u", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti", "e3", "e6", "e-2", "P", "E"];
            let text = format!("{amount}.{fraction:03}{}", all[suffix]);
            let first: Quantity = text.parse().unwrap();
            let printed = first.to_string();
            let second: Quantity = printed.parse().unwrap();
            prop_assert_eq!(first, second);
            prop_assert_eq!(second.to_string(), printed);
        }
    }
}
