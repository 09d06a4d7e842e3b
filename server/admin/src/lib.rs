//! `lethe-admin`: the privacy team's tool. One file per command; exit code 0 success, 1 failure, 2
//! usage, 3 not equal or not verified, 5 a genuine receipt of a request that removed nothing, 6 a
//! replay that is equal as far as it goes, and had to leave something out.

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use lethe_transport::place::Place;

mod commands;
mod desk;
mod output;
mod when;

#[derive(Parser)]
#[command(
    name = "lethe-admin",
    version,
    about = "Deletion requests, receipts and their verification"
)]
struct Cli {
    /// Folder with this operator's identity.
    #[arg(
        long,
        global = true,
        default_value = "lethe-admin-home",
        env = "LETHE_ADMIN_HOME"
    )]
    home: std::path::PathBuf,
    /// Where the coordinator is. `enrol` needs it; later it is remembered, and giving another one
    /// is for a coordinator that has moved.
    #[arg(long, global = true, value_name = "HOST:PORT")]
    server: Option<Place>,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Exchange an invitation for an operator identity (once).
    Enrol(commands::enrol::Args),
    /// State of the coordinator, or of one deletion.
    Status(commands::status::Args),
    /// Delete subjects, items, or what came after a date; or stop using data.
    Forget(commands::forget::Args),
    /// The plan of a deletion and its expected cost; nothing is done.
    Forecast(commands::forget::What),
    /// How many operators have to agree to a deletion, and which proposals wait for them.
    Policy(commands::policy::Args),
    /// Agree to another operator's proposal.
    Approve(commands::policy::Which),
    /// Withdraw a proposal that still waits.
    Cancel(commands::policy::Which),
    /// Who the operators are; with --remove, withdraw one.
    Operators(commands::operators::Args),
    /// What operators did besides deletions: policies, invitations of operators, approvals,
    /// revocations, replays, exports, shards that were held or released, restrictions that were
    /// lifted.
    Actions,
    /// All deletions, with their deadlines.
    List(commands::list::Args),
    /// Carry out the requests of a CSV file.
    Import(commands::import::Args),
    /// Take requests in the form of OpenDSR 2.0, and answer them.
    Opendsr(commands::requests::opendsr::Args),
    /// Take requests in the form of the IAB's Data Deletion Request Framework 1.0, and answer them.
    IabDdrf(commands::requests::ddrf::Args),
    /// Whose data is kept and not used; lift a restriction.
    Restriction(commands::restriction::Args),
    /// What a subject's data is in, or whose data a release is computed from.
    Lineage(commands::lineage::Args),
    /// Apply the next version of the catalogue, or show which there are.
    #[command(subcommand)]
    Catalogue(commands::catalogue::What),
    /// Which share of the devices has dropped a recalled release.
    Coverage(commands::coverage::Args),
    /// Search records and files for what should be gone.
    Scan(commands::scan::Args),
    /// Fetch the transparency log as files.
    Log(commands::log::Args),
    /// Fetch the receipt of a finished deletion.
    Receipt(commands::receipt::Args),
    /// Verify a receipt, offline.
    Verify(commands::verify::Args),
    /// Start the next epoch, see how far epochs are, or give one up.
    Epoch(commands::epoch::Args),
    /// Shards in which nothing is trained: a damaged one waits until an operator releases it.
    Shard(commands::shard::Args),
    /// Retrain a shard from scratch on what remains and compare hashes.
    Replay(commands::replay::Args),
    /// Write what an auditor needs to train a shard again, or with --lists to fold the sums of the
    /// lists again, on another machine.
    ExportAudit(commands::export_audit::Args),
    /// Issue a single-use invitation.
    Invite(commands::invite::Args),
    /// Revoke the certificates of a subject.
    Revoke(commands::revoke::Args),
    /// Print a shell's completion script.
    Completion(commands::shell::Completion),
    /// Write manual pages.
    Man(commands::shell::Man),
}

/// Runs the tool with these arguments, the program's name first.
pub fn run(args: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let cli = Cli::parse_from(args);
    let out = output::Output { json: cli.json };
    let result = match cli.command {
        Command::Verify(args) => commands::verify::run(&args, &out),
        Command::Completion(args) => commands::shell::completion(&args, Cli::command()),
        Command::Man(args) => commands::shell::man(&args, Cli::command()),
        command => run_online(&cli.home, cli.server, command, &out),
    };
    result.unwrap_or_else(|e| {
        output::error(&format!("{e:#}"));
        ExitCode::FAILURE
    })
}

fn run_online(
    home: &std::path::Path,
    server: Option<Place>,
    command: Command,
    out: &output::Output,
) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        if let Command::Scan(args) = &command {
            return commands::scan::run(args, home, server.as_ref(), out).await;
        }
        if let Command::Enrol(args) = command {
            let lacks = || {
                let why = "`enrol` needs --server HOST:PORT: where the coordinator is\n";
                Cli::command()
                    .error(ErrorKind::MissingRequiredArgument, why)
                    .exit()
            };
            let server = server.unwrap_or_else(lacks);
            return commands::enrol::run(&args, home, server, out).await;
        }
        let desk = desk::Desk::open(home, server.as_ref()).await?;
        let code = match command {
            Command::Status(args) => commands::status::run(&args, &desk, out).await,
            Command::Forget(args) => commands::forget::run(&args, &desk, out).await,
            Command::Forecast(args) => commands::forget::forecast(&args, &desk, out).await,
            Command::Policy(args) => commands::policy::policy(&args, &desk, out).await,
            Command::Approve(args) => commands::policy::approve(&args, &desk, out).await,
            Command::Cancel(args) => commands::policy::cancel(&args, home, &desk, out).await,
            Command::Operators(args) => commands::operators::run(&args, &desk, out).await,
            Command::Actions => commands::policy::actions(&desk, out).await,
            Command::List(args) => commands::list::run(&args, &desk, out).await,
            Command::Import(args) => commands::import::run(&args, &desk, out).await,
            Command::Opendsr(args) => {
                commands::requests::opendsr::run(&args, home, &desk, out).await
            }
            Command::IabDdrf(args) => commands::requests::ddrf::run(&args, home, &desk).await,
            Command::Restriction(args) => commands::restriction::run(&args, &desk, out).await,
            Command::Shard(args) => commands::shard::run(&args, &desk, out).await,
            Command::Lineage(args) => commands::lineage::run(&args, &desk, out).await,
            Command::Catalogue(what) => commands::catalogue::run(&what, &desk, out).await,
            Command::Coverage(args) => commands::coverage::run(&args, &desk, out).await,
            Command::Log(args) => commands::log::run(&args, &desk, out).await,
            Command::Receipt(args) => commands::receipt::run(&args, &desk).await,
            Command::Epoch(args) => commands::epoch::run(&args, &desk, out).await,
            Command::Replay(args) => commands::replay::run(&args, &desk, out).await,
            Command::ExportAudit(args) => commands::export_audit::run(&args, &desk, out).await,
            Command::Invite(args) => commands::invite::run(&args, &desk, out).await,
            Command::Revoke(args) => commands::revoke::run(&args, &desk, out).await,
            Command::Enrol(_)
            | Command::Scan(_)
            | Command::Verify(_)
            | Command::Completion(_)
            | Command::Man(_) => Ok(ExitCode::SUCCESS),
        };
        desk.close().await;
        code
    })
}
