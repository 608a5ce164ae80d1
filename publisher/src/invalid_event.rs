//! The error of an event that breaks a rule.

/// A field of an event breaks its rule. Reads `data.amount: must not be negative`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("{field}: {rule}")]
pub struct InvalidEvent {
    /// The path of the field, `data.amount`; `event` when it is the whole.
    pub field: String,
    /// What the field must be, or what is wrong with it.
    pub rule: String,
}

impl InvalidEvent {
    /// An error that says that this field breaks this rule.
    pub fn new(field: impl Into<String>, rule: impl Into<String>) -> Self {
        Self { field: field.into(), rule: rule.into() }
    }
}
