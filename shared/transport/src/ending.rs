//! When a process that serves is to end.

/// Waits until the process is interrupted or terminated or, `with_parent`, until its standard input
/// closes: a parent that ends leaves nothing running.
///
/// # Errors
/// The system does not tell of signals.
pub async fn ended(with_parent: bool) -> std::io::Result<()> {
    let parent_gone = async {
        if !with_parent {
            return std::future::pending().await;
        }
        // A plain thread: tokio's standard input would keep the runtime from ending.
        let (send, receive) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ = send.send(());
        });
        let _ = receive.await;
    };
    tokio::select! {
        () = parent_gone => Ok(()),
        r = tokio::signal::ctrl_c() => r,
        r = terminated() => r,
    }
}

#[cfg(unix)]
async fn terminated() -> std::io::Result<()> {
    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?
        .recv()
        .await;
    Ok(())
}

#[cfg(not(unix))]
async fn terminated() -> std::io::Result<()> {
    std::future::pending().await
}
