//! How PostgreSQL would read a view for one tenant: by an index, or by reading whole tables.

use std::collections::BTreeSet;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::views::View;

/// Whole tables are read where nothing else is possible, as if every table were large: those of a database that was just set up are not.
const ONLY_INDEXES: &str =
    "set local enable_seqscan = off; set local enable_hashjoin = off; set local enable_mergejoin = off";
const EXPLAIN: &str = "explain (verbose, format json) ";
const NO_TENANT: &str = "gateway-check";

/// The columns of a relation, as they are written in SQL.
const COLUMNS: &str = "select quote_ident(attname) from pg_attribute
    join pg_class on pg_class.oid = attrelid join pg_namespace on pg_namespace.oid = relnamespace
    where nspname = $1 and relname = $2 and attnum > 0 and not attisdropped order by attnum";

/// A line for each table that no index serves, or for the reason why the view can't be read.
pub(super) async fn faults(connection: &mut PgConnection, view: &View) -> sqlx::Result<Vec<String>> {
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql(ONLY_INDEXES).execute(&mut *transaction).await?;
    let explain = AssertSqlSafe(format!("{EXPLAIN}{}", view.statement));
    let plan = sqlx::query_scalar::<_, Value>(explain).persistent(false).bind(NO_TENANT).fetch_one(&mut *transaction);
    let plan = plan.await;
    transaction.rollback().await?;
    let plan = match plan {
        Ok(plan) => plan,
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => return Ok(Vec::new()),
        Err(sqlx::Error::Database(error)) => {
            return Ok(vec![format!("dashboard.{} cannot be read: {}", view.name, error.message())]);
        }
        Err(error) => return Err(error),
    };
    let mut whole = Vec::new();
    walk(&plan[0]["Plan"], &mut Vec::new(), &mut whole);
    let mut lines = BTreeSet::new();
    for Whole { schema, table, alias, filter, joins } in whole {
        let columns: Vec<String> = sqlx::query_scalar(COLUMNS)
            .persistent(false)
            .bind(&schema)
            .bind(&table)
            .fetch_all(&mut *connection)
            .await?;
        let keys =
            [filter, joins].iter().map(|conditions| keys(&columns, &alias, conditions)).find(|keys| !keys.is_empty());
        // Nothing is asked of the table: it is a constant of a row or two.
        if let Some(keys) = keys {
            let table = format!("{}.{}", quoted(&schema), quoted(&table));
            lines.insert(format!(
                "dashboard.{} reads all of {table} for one tenant; write: create index on {table} ({})",
                view.name,
                keys.join(", ")
            ));
        }
    }
    Ok(lines.into_iter().collect())
}

/// A table that is read as a whole, and what its rows are held against.
struct Whole {
    schema: String,
    table: String,
    alias: String,
    /// By itself.
    filter: String,
    /// With those of other tables.
    joins: String,
}

fn walk<'a>(node: &'a Value, joins: &mut Vec<&'a str>, whole: &mut Vec<Whole>) {
    let text = |name: &str| node[name].as_str().unwrap_or_default();
    let reads_all = match text("Node Type") {
        "Seq Scan" => true,
        // An index that is only good for the order.
        "Index Scan" | "Index Only Scan" => node["Index Cond"].is_null(),
        _ => false,
    };
    if reads_all {
        whole.push(Whole {
            schema: text("Schema").to_owned(),
            table: text("Relation Name").to_owned(),
            alias: text("Alias").to_owned(),
            filter: text("Filter").to_owned(),
            joins: joins.join(" "),
        });
    }
    joins.push(text("Join Filter"));
    node["Plans"].as_array().into_iter().flatten().for_each(|child| walk(child, joins, whole));
    joins.pop();
}

/// The columns that the conditions name, as an index is written on them: on the text of a column where that is what is compared.
fn keys(columns: &[String], alias: &str, conditions: &str) -> Vec<String> {
    let mut keys: Vec<_> = columns
        .iter()
        .filter_map(|column| {
            let name = format!("{}.{column}", quoted(alias));
            let at = find_word(conditions, &name)?;
            let is_cast = conditions[..at].ends_with('(') && conditions[at + name.len()..].starts_with(")::text");
            Some((at, if is_cast { format!("({column}::text)") } else { column.clone() }))
        })
        .collect();
    keys.sort();
    keys.into_iter().map(|(_, key)| key).collect()
}

/// Where `name` stands by itself, not as the beginning of a longer name.
fn find_word(text: &str, name: &str) -> Option<usize> {
    let goes_on = |rest: &str| rest.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$');
    let begins = |before: &str| !before.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | '.' | '"'));
    let is_word = |at: &usize| begins(&text[..*at]) && !goes_on(&text[at + name.len()..]);
    text.match_indices(name).map(|(at, _)| at).find(is_word)
}

/// A name as PostgreSQL writes it, in quotes where it must be.
fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let is_plain = name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit());
    if is_plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_of_an_index_are_those_that_are_compared() {
        let columns = ["id", "\"centreId\"", "\"receivedAt\"", "centre"].map(str::to_owned);
        for (conditions, expected) in [
            ("(\"Payment\".\"centreId\" = 'x'::text)", vec!["\"centreId\""]),
            ("((\"Payment\".\"centreId\")::text = 'x'::text)", vec!["(\"centreId\"::text)"]),
            ("(\"Payment\".id = other.id)", vec!["id"]),
            ("(\"Payment\".ids = other.centre)", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(keys(&columns, "Payment", conditions), expected, "{conditions}");
        }
    }
}
