//! What an operator reads in the log: who came, what was accepted. People are not named: logs are
//! kept, copied and searched by others.

use lethe_ledger::Event;

/// Says what of these events is notable. They are on disk.
pub(super) fn log(events: &[Event]) {
    for event in events {
        match event {
            Event::DeviceEnrolled { certificate, .. } => {
                tracing::info!(certificate = certificate.short(), "a device has enrolled");
            }
            Event::OperatorEnrolled { certificate, .. } => {
                tracing::info!(
                    certificate = certificate.short(),
                    "an operator has enrolled"
                );
            }
            Event::OperatorRemoved { root } => {
                tracing::info!(operator = root.short(), "an operator is removed");
            }
            Event::DeletionAccepted { id, deletion } => {
                tracing::info!(
                    deletion = id,
                    kind = deletion.request.kind(),
                    together = deletion.batch,
                    "a deletion is accepted"
                );
            }
            Event::MadeExact {
                id, exact_after_ms, ..
            } => {
                tracing::info!(
                    deletion = id,
                    after_ms = exact_after_ms,
                    "what is served is free of the data"
                );
            }
            Event::Proposed { id, .. } => {
                tracing::info!(proposal = id, "a proposal waits for other operators");
            }
            _ => {}
        }
    }
}
