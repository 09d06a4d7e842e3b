//! What a run of some minutes cannot show: seven months, measured beforehand.

/// Made by `lethe bench life`.
const PICTURE: &str = include_str!("../../../../../docs/figures/life.svg");

/// Names what SVG is where it stands alone; inside a page it names an address for nothing.
const NAMESPACE: &str = " xmlns=\"http://www.w3.org/2000/svg\"";

/// The section of the page.
pub(super) fn life() -> String {
    format!(
        "<h2>Seven months, as they happened</h2><p>This was measured beforehand, not in this run: \
         MovieLens-100K from its first day to its last. People come when they first rate, some \
         leave, withdraw or come back, films are added, and the server is killed now and then. \
         Each event is predicted before it is seen, from tables of the morning. At the end what \
         is served equals, byte for byte, what a system computes that never met those who \
         left.</p>{}<p class='note'>Refitted each day: a system that has everybody's events in \
         one place and computes everything anew each morning. <code>lethe bench life</code> does \
         it again; docs/life.md has the table, and says what is worse.</p>",
        PICTURE.replace(NAMESPACE, "")
    )
}
