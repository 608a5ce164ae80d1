//! Money: a decimal with two decimals that never passes through a float, in either direction.

use std::{fmt, iter::Sum, str::FromStr};

use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::value::RawValue;

/// An amount in rand with exactly two decimals, at most 9,999,999,999.99 either way (PostgreSQL's `numeric(12,2)`).
///
/// In JSON it is a number with two decimals, `1500.00`. It is read only from a plain JSON number with at most two
/// decimals: no string, no exponent, no third decimal (which would have to be rounded), no `-0`. Both directions go
/// through serde_json's raw text, so serialise and deserialise it with serde_json only.
///
/// ```
/// use publisher::Money;
///
/// let fee: Money = "1500".parse()?;
/// assert_eq!(fee, Money::from_cents(150_000)?);
/// assert_eq!(serde_json::to_string(&fee)?, "1500.00");
/// assert!(serde_json::from_str::<Money>("0.001").is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[cfg_attr(test, derive(ts_rs::TS), ts(type = "number"))]
pub struct Money(Decimal);

/// Not an amount of money; the text is the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidMoney {
    /// A string, an exponent, a third decimal, `-0`, or no number at all.
    #[error("must be a plain number with at most two decimals, like 1500.00")]
    NotPlain,
    /// Larger than `numeric(12,2)` holds.
    #[error("must lie between -9999999999.99 and 9999999999.99")]
    OutOfRange,
}

const MAX_CENTS: i64 = 999_999_999_999;

impl Money {
    /// Zero.
    pub const ZERO: Self = Self(Decimal::ZERO);

    /// From a whole number of cents.
    ///
    /// # Errors
    /// When the amount is out of range.
    pub fn from_cents(cents: i64) -> Result<Self, InvalidMoney> {
        let in_range = (-MAX_CENTS..=MAX_CENTS).contains(&cents);
        in_range.then(|| Self(Decimal::new(cents, 2))).ok_or(InvalidMoney::OutOfRange)
    }

    /// The amount as a decimal.
    pub fn as_decimal(self) -> Decimal {
        self.0
    }

    /// Whether the amount is below zero.
    pub fn is_negative(self) -> bool {
        self.0 < Decimal::ZERO
    }

    /// The sum, unless it leaves the range.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        Self::try_from(self.0 + other.0).ok()
    }
}

impl TryFrom<Decimal> for Money {
    type Error = InvalidMoney;

    fn try_from(value: Decimal) -> Result<Self, InvalidMoney> {
        if value.abs() > Decimal::new(MAX_CENTS, 2) {
            return Err(InvalidMoney::OutOfRange);
        }
        // `normalize` drops trailing zeros, so 1.500 is 1.50, and turns -0 into 0.
        let plain = value.normalize();
        if plain.scale() > 2 { Err(InvalidMoney::NotPlain) } else { Ok(Self(plain)) }
    }
}

impl FromStr for Money {
    type Err = InvalidMoney;

    /// JSON's grammar of a number without its exponent, and at most two decimals.
    fn from_str(text: &str) -> Result<Self, InvalidMoney> {
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let unsigned = text.strip_prefix('-').unwrap_or(text);
        let (whole, cents) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
        let leading_zero = whole.len() > 1 && whole.starts_with('0');
        if !digits(whole) || !digits(cents) || cents.len() > 2 || leading_zero {
            return Err(InvalidMoney::NotPlain);
        }
        // Longer than the range allows, and perhaps longer than any integer type.
        if whole.len() > 10 {
            return Err(InvalidMoney::OutOfRange);
        }
        let value = text.parse::<Decimal>().map_err(|_| InvalidMoney::NotPlain)?;
        if value.is_zero() && text.starts_with('-') {
            return Err(InvalidMoney::NotPlain);
        }
        Self::try_from(value)
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2}", self.0)
    }
}

impl Sum for Money {
    /// # Panics
    /// When the sum leaves the range, which takes ten billion rand.
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, |sum, amount| sum.checked_add(amount).expect("a sum below ten billion rand"))
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_string()).map_err(ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer)?.get().parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_plain_number_is_refused() {
        for bad in [
            "\"10.00\"",
            "0.001",
            "1e3",
            "1E400",
            "1e400",
            "NaN",
            "-0",
            "-0.00",
            "+1",
            "01",
            ".5",
            "5.",
            "",
            " ",
            "null",
            "true",
            "[]",
            "{}",
            "0x10",
            "1_000",
            "1,000",
            "٣",
        ] {
            assert_eq!(bad.parse::<Money>(), Err(InvalidMoney::NotPlain), "{bad}");
        }
        for big in ["12345678901234567.89", "10000000000", "-10000000000.00", &"9".repeat(400)] {
            assert_eq!(big.parse::<Money>(), Err(InvalidMoney::OutOfRange), "{big}");
        }
        for bad in ["\"10.00\"", "1e400", "0.001", "-0", "null", "12345678901234567.89"] {
            assert!(serde_json::from_str::<Money>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_decimal_must_fit_too() {
        assert_eq!(Money::try_from(Decimal::new(1_500_000, 3)).map(|m| m.to_string()), Ok("1500.00".into()));
        assert_eq!(Money::try_from(Decimal::new(1, 3)), Err(InvalidMoney::NotPlain));
        assert_eq!(Money::try_from(Decimal::MAX), Err(InvalidMoney::OutOfRange));
        assert_eq!(Money::from_cents(i64::MIN), Err(InvalidMoney::OutOfRange));
    }

    proptest! {
        #[test]
        fn every_amount_survives_json_to_the_cent(cents in -MAX_CENTS..=MAX_CENTS) {
            let money = Money::from_cents(cents).expect("in range");
            let json = serde_json::to_string(&money).expect("a number");
            let sign = if cents < 0 { "-" } else { "" };
            prop_assert_eq!(&json, &format!("{sign}{}.{:02}", cents.abs() / 100, cents.abs() % 100));
            prop_assert_eq!(serde_json::from_str::<Money>(&json).expect("what we wrote"), money);
        }
    }
}
