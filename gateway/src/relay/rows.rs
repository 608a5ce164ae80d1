//! The rows of the outbox: which of them this relay can publish, and how their events are read.

use std::time::Duration;

use publisher::{DashboardEvent, DashboardEventType, EventData, InvalidEvent, MAX_EVENT_BYTES, TenantId};
use sqlx::Row;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;
use tokio::time::timeout;
use tracing::error;

/// The relay waits so long for an answer of the database.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The types of events that this relay knows: `$1` of every statement with [`for_a_newer_relay`].
pub(super) fn known_types() -> Vec<&'static str> {
    DashboardEventType::ALL.iter().map(|known| known.as_str()).collect()
}

/// Whether a moment can be written by RFC 3339. PostgreSQL also has infinity and the year 294276, and decoding them would panic.
macro_rules! moment {
    ($column:literal) => {
        concat!("(", $column, " between '0002-01-01 00:00Z' and '9998-12-31 00:00Z')")
    };
}

/// The condition of rows that wait for a newer relay: their type, or a type that was condensed into them, is not among `$1`. A row
/// that also breaks a rule is refused at once, since no relay can publish it. The rule of types is [`MessageType`]'s.
///
/// [`MessageType`]: publisher::internals::MessageType
macro_rules! for_a_newer_relay {
    () => {
        concat!(
            "((case
                when row.type = any($1::text[]) then
                    case when row.type = 'metrics_updated' and jsonb_typeof(row.data -> 'condensed') = 'object'
                        then (row.data -> 'condensed') - $1::text[] <> '{}' end
                else row.type ~ '^[A-Za-z0-9_.:-]{1,64}$' and row.event_id ~ '^[A-Za-z0-9_-]{1,64}$' and row.event_id <> '-'
                    and jsonb_typeof(row.data) = 'object' and ",
            moment!("row.happened_at"),
            " end) is true)"
        )
    };
}

/// The columns that [`event`] reads. They are null where a value breaks a rule and reading it would do harm.
macro_rules! columns {
    () => {
        concat!(
            "row.id, row.event_id, row.type,
            case when pg_column_size(row.data) <= 65536 then row.data::text end as data,
            case when ",
            moment!("row.happened_at"),
            " and ",
            moment!("row.recorded_at"),
            " then row.happened_at end as happened_at"
        )
    };
}

pub(super) use {columns, for_a_newer_relay, moment};

/// What became of a row: the column `fate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowStatus {
    Published,
    Condensed,
    Refused,
}

impl RowStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Condensed => "condensed",
            Self::Refused => "refused",
        }
    }
}

/// A row that waits. It has no event when it breaks a rule, as a row can that was not written by `dashboard.emit`.
#[derive(Debug)]
pub(super) struct Pending {
    pub id: i64,
    pub event: Option<DashboardEvent>,
}

/// Reads the column `tenant_id`.
pub(super) fn tenant(row: &PgRow) -> sqlx::Result<TenantId> {
    let tenant: &str = row.try_get("tenant_id")?;
    // The table has a constraint with the same rule.
    TenantId::try_from(tenant.to_owned()).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// Reads a row of the outbox; `None` for the line of a tenant without a row.
pub(super) fn pending(row: &PgRow) -> sqlx::Result<Option<Pending>> {
    let Some(id) = row.try_get::<Option<i64>, _>("id")? else { return Ok(None) };
    let event = event(row)?;
    let event = event.inspect_err(|error| error!(row = id, %error, "outbox row refused: it breaks a rule"));
    Ok(Some(Pending { id, event: event.ok() }))
}

/// Reads the event of a row with [`columns`].
pub(super) fn event(row: &PgRow) -> sqlx::Result<Result<DashboardEvent, InvalidEvent>> {
    let (id, kind): (&str, &str) = (row.try_get("event_id")?, row.try_get("type")?);
    let data: Option<&str> = row.try_get("data")?;
    let timestamp: Option<OffsetDateTime> = row.try_get("happened_at")?;
    let parsed = || {
        let id = id.parse().map_err(|rule| InvalidEvent::new("id", format!("{rule}")))?;
        let kind = kind.parse().map_err(|rule| InvalidEvent::new("type", format!("{rule}")))?;
        let timestamp =
            timestamp.ok_or_else(|| InvalidEvent::new("timestamp", "must lie in the years 0002 to 9998"))?;
        let data = data.ok_or_else(|| InvalidEvent::new("data", "must be at most 65536 bytes of JSON"))?;
        let event = DashboardEvent { id, timestamp, data: EventData::from_json(kind, data)? };
        // A small event needs no measuring, for which it would have to be serialised.
        if data.len() > MAX_EVENT_BYTES / 2 {
            event.validate()?
        } else {
            event.data.validate()?
        }
        Ok(event)
    };
    Ok(parsed())
}

/// Ends a query of a frozen database, which must not freeze the relay.
pub(super) async fn within_limit<T>(work: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let late = || sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer from the database"));
    timeout(ANSWER_LIMIT, work).await.unwrap_or_else(|_| Err(late()))
}
