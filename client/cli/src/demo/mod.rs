//! The demo: a coordinator process, a fleet process, the admin tool, and the story in between.

pub(crate) mod federation;
pub(crate) mod figures;
pub(crate) mod listers;
pub(crate) mod lists;
pub(crate) mod processes;
pub(crate) mod quality;
pub(crate) mod report;
pub(crate) mod table;
