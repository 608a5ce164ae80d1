//! What the gateway's login must be allowed to do.

use sqlx::PgConnection;

/// Each right that the login lacks, with the object and the login as they are written in SQL. An object that is not there needs none.
const MISSING: &str = "
    with needed (relation, privilege) as (values
        ('outbox', 'select'), ('outbox', 'insert'), ('outbox', 'update'), ('outbox', 'delete'),
        ('relay', 'select'), ('relay', 'update'), ('metrics', 'select'), ('recent_payments', 'select')
    )
    select 'usage', 'schema dashboard', quote_ident(current_user)
    from pg_namespace where nspname = 'dashboard' and not has_schema_privilege(oid, 'usage')
    union all
    select privilege, 'dashboard.' || relation, quote_ident(current_user)
    from needed
    join pg_class on relname = relation
    join pg_namespace on pg_namespace.oid = relnamespace and nspname = 'dashboard'
    where not has_table_privilege(pg_class.oid, privilege)";

pub(super) async fn missing(connection: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    let rows: Vec<(String, String, String)> = sqlx::query_as(MISSING).persistent(false).fetch_all(connection).await?;
    let line = |(privilege, object, login): (String, String, String)| {
        let upper = privilege.to_uppercase();
        format!("{login} has no {upper} on {object}; write: grant {privilege} on {object} to {login}")
    };
    Ok(rows.into_iter().map(line).collect())
}
