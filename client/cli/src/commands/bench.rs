//! `lethe bench`: benchmark programs that are built beside this one.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use lethe_run::children::Running;
use lethe_run::files::Temporary;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// How deletion performs: time until exact, retraining saved, canaries under SIGKILL, damage to
    /// the store, receipts. About twenty minutes; `lethe bench forget --help` lists shorter forms.
    #[command(disable_help_flag = true)]
    Forget {
        /// Arguments of the program `bench-forget`, such as `--json FILE`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// The published unlearning methods on the same data, model and deletions. Hours; `--quick`
    /// takes some minutes; goes on where it was interrupted. `lethe bench unlearn --help` lists the
    /// options.
    #[command(disable_help_flag = true)]
    Unlearn {
        /// Arguments of the program `bench-unlearn`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// PPLR's balance beside other ways to federate, and what compression and lost devices cost.
    /// Hours; `--quick` takes some minutes; goes on where it was interrupted. `lethe bench
    /// federated --help` lists the options.
    #[command(disable_help_flag = true)]
    Federated {
        /// Arguments of the program `bench-federated`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// What the recommender's lists are worth beside references and peers, and what they cost.
    /// About half an hour; `--quick` takes minutes. `lethe bench recommend --help` lists the
    /// options.
    #[command(disable_help_flag = true)]
    Recommend {
        /// Arguments of the program `bench-recommend`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// What leaks: attacks on snapshots, handles, the split and updates, and what helps against
    /// them. An hour; `--quick` takes some minutes. `lethe bench leak --help` lists the options.
    #[command(disable_help_flag = true)]
    Leak {
        /// Arguments of the program `bench-leak`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Seven months as they happened: each event predicted, then seen; people come, leave and come
    /// back, and the server is killed now and then. About half an hour; `--quick` takes some
    /// minutes. `lethe bench life --help` lists the options.
    #[command(disable_help_flag = true)]
    Life {
        /// Arguments of the program `bench-life`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// What a minority of people can do to everybody's adapter, against each aggregation rule. An
    /// hour; `--quick` takes a minute and holds facts. `lethe bench attacks --help` lists the
    /// options.
    #[command(disable_help_flag = true)]
    Attacks {
        /// Arguments of the program `bench-attacks`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let (name, args) = match &args.what {
        What::Forget { args } => ("bench-forget", args),
        What::Unlearn { args } => ("bench-unlearn", args),
        What::Federated { args } => ("bench-federated", args),
        What::Recommend { args } => ("bench-recommend", args),
        What::Leak { args } => ("bench-leak", args),
        What::Life { args } => ("bench-life", args),
        What::Attacks { args } => ("bench-attacks", args),
    };
    let program: PathBuf = std::env::current_exe()?.with_file_name(name);
    let mut command = Command::new(&program);
    // A folder for all temporary ones: gone with the process, whatever ends it.
    let temporary = Temporary::new()?;
    command.args(args).env("TMPDIR", temporary.path());
    // A group of its own: a signal reaches the processes that it starts, too.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let running = Running::start(&mut command)
        .with_context(|| format!("{}: build with `cargo build --release`", program.display()))?;
    let status = running.wait()?;
    if !status.success() {
        bail!("{name} ended with {status}");
    }
    Ok(())
}
