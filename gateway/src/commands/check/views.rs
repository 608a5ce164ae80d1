//! The columns of the two views: whether the gateway can read them.

use sqlx::PgConnection;

use crate::snapshots::queries;

/// A column as snapshots read it.
struct Column {
    name: &'static str,
    /// Its documented type.
    wanted: &'static str,
    /// The types that are read as well as that one.
    read: &'static [&'static str],
}

const fn column(name: &'static str, wanted: &'static str, read: &'static [&'static str]) -> Column {
    Column { name, wanted, read }
}

/// Compared with text, in a way that an index on the column serves.
const TENANT: &[&str] = &["text", "varchar"];
/// Written as JSON strings.
const TEXT: &[&str] = &["text", "varchar", "bpchar", "name", "citext", "uuid", "enum"];
/// Without a binary fraction, in which no cent is exact.
const MONEY: &[&str] = &["numeric", "int8", "int4", "int2"];
const COUNT: &[&str] = &["int8", "int4", "int2", "numeric"];

/// A view that the database should have.
pub(super) struct View {
    pub name: &'static str,
    /// The statement that reads it for one tenant.
    pub statement: &'static str,
    columns: &'static [Column],
}

pub(super) const ALL: [View; 2] = [
    View {
        name: "metrics",
        statement: queries::METRICS,
        columns: &[
            column("tenant_id", "text", TENANT),
            column("total_outstanding", "numeric(12,2)", MONEY),
            column("total_arrears", "numeric(12,2)", MONEY),
            column("accounts_in_arrears", "bigint", COUNT),
            column("payments_today", "bigint", COUNT),
            column("amount_received_today", "numeric(12,2)", MONEY),
            column("invoices_by_status", "jsonb", &["jsonb", "json"]),
        ],
    },
    View {
        name: "recent_payments",
        statement: queries::PAYMENTS,
        columns: &[
            column("tenant_id", "text", TENANT),
            column("payment_id", "text", TEXT),
            column("amount", "numeric(12,2)", MONEY),
            column("parent_name", "text", TEXT),
            column("child_name", "text", TEXT),
            column("invoice_number", "text", TEXT),
            column("received_at", "timestamptz", &["timestamptz"]),
        ],
    },
];

/// The columns of `$1`: the name, the type by its short name, and as people write it. A domain is read as what it stands for.
const COLUMNS: &str = "
    select attname::text, case when base.typtype = 'e' then 'enum' else base.typname::text end, format_type(base.oid, null)
    from pg_attribute
    join pg_class on pg_class.oid = attrelid
    join pg_namespace on pg_namespace.oid = relnamespace and nspname = 'dashboard'
    join pg_type own on own.oid = atttypid
    join pg_type base on base.oid = case own.typtype when 'd' then own.typbasetype else own.oid end
    where relname = $1 and attnum > 0 and not attisdropped";

impl View {
    /// A line for each column that is missing or has a type that can't be read. A view that is not there has none.
    pub(super) async fn wrong_columns(&self, connection: &mut PgConnection) -> sqlx::Result<Vec<String>> {
        let there: Vec<(String, String, String)> =
            sqlx::query_as(COLUMNS).persistent(false).bind(self.name).fetch_all(connection).await?;
        if there.is_empty() {
            return Ok(Vec::new());
        }
        let wrong = self.columns.iter().filter_map(|Column { name, wanted, read }| {
            let fault = match there.iter().find(|(there, ..)| there == name) {
                None => format!("is missing, must be {wanted}"),
                Some((_, short, _)) if read.contains(&&**short) => return None,
                Some((_, short, shown)) => format!("is {shown}, must be {wanted}: {}", cast(name, short, wanted)),
            };
            Some(format!("dashboard.{}: {name} {fault}", self.name))
        });
        Ok(wrong.collect())
    }
}

/// What to write in the view. The column of the billing table is most likely Prisma's, with the name that Prisma gives it.
fn cast(name: &str, short: &str, wanted: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    let camel = words.fold(first, |camel, word| {
        let (initial, rest) = word.split_at(word.len().min(1));
        camel + &initial.to_uppercase() + rest
    });
    match short {
        "timestamp" => format!("\"{camel}\" at time zone 'UTC'"),
        _ => format!("\"{camel}\"::{wanted}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cast_is_of_the_column_as_prisma_names_it() {
        assert_eq!(cast("received_at", "timestamp", "timestamptz"), "\"receivedAt\" at time zone 'UTC'");
        assert_eq!(cast("amount", "float8", "numeric(12,2)"), "\"amount\"::numeric(12,2)");
    }
}
