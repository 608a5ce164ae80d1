//! The database: whether it answers, and whether it lets the gateway do its work.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

use super::report::Report;
use super::{plans, rights, views};
use crate::config::Settings;
use crate::database::{self, Found};

/// For all questions together: the catalogue answers in milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn check(settings: &Settings, report: &mut Report) -> anyhow::Result<()> {
    let Some(options) = &settings.database else {
        return report.good("postgres: none configured, there are no snapshots and no outbox");
    };
    let found = match database::look(options).await {
        Ok(Found::Down(reason)) => return report.unreachable(format!("postgres: cannot be used: {reason}")),
        Ok(Found::Ready { views }) => views,
        Err(fault) => return report.fault(format!("postgres: {fault}")),
    };
    let looked = timeout(PATIENCE, async {
        let mut connection = PgConnection::connect_with(options).await?;
        let faults = faults(&mut connection).await?;
        connection.close().await.map(|()| faults)
    });
    match looked.await {
        Err(_) => report.unreachable(format!("postgres: cannot be used: no answer within {PATIENCE:?}")),
        Ok(Err(error)) => report.unreachable(format!("postgres: cannot be used: {error}")),
        Ok(Ok(faults)) if faults.is_empty() && found => {
            report.good("postgres: answers, with the outbox and the views of snapshots")
        }
        Ok(Ok(faults)) if faults.is_empty() => {
            report.good("postgres: answers, with the outbox; without views snapshots are null")
        }
        Ok(Ok(faults)) => faults.into_iter().try_for_each(|fault| report.fault(format!("postgres: {fault}"))),
    }
}

async fn faults(connection: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    let mut faults = rights::missing(connection).await?;
    let may_read = faults.is_empty();
    for view in &views::ALL {
        let wrong = view.wrong_columns(connection).await?;
        // A view with other columns, or one that may not be read, has no plan.
        if wrong.is_empty() && may_read {
            faults.extend(plans::faults(connection, view).await?);
        } else {
            faults.extend(wrong);
        }
    }
    Ok(faults)
}
