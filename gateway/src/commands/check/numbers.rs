//! Numbers that are valid by themselves and do not fit each other.

use super::report::Report;
use crate::config::Settings;

pub(super) fn check(settings: &Settings, report: &mut Report) -> anyhow::Result<()> {
    let (drain, recovery) = (settings.limits.drain.as_secs(), settings.limits.recovery.as_secs());
    if drain > recovery {
        report.fault(format!(
            "DRAIN_SECONDS={drain}: is over RECOVERY_SECONDS={recovery}, so events can be forgotten while a drain lasts and the browsers \
             that it closes could not resume; write DRAIN_SECONDS={recovery} at most, or RECOVERY_SECONDS={drain}"
        ))?;
    }
    Ok(())
}
