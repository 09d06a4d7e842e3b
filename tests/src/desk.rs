//! An operator at a shell: the admin tool as people use it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use lethe_proto::admin::{AdminReply, AdminRequest};

use crate::world::{Operator, World};

/// An operator at a shell.
pub struct Desk {
    program: PathBuf,
    /// Folder of the identity.
    pub home: PathBuf,
    folder: PathBuf,
}

/// What a command gave.
pub struct Said {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Desk {
    /// Nobody yet. `program` is `env!("CARGO_BIN_EXE_admin-process")` of the test.
    pub fn new(program: &str, folder: &Path) -> Self {
        std::fs::create_dir_all(folder).expect("creates");
        Self {
            program: program.into(),
            home: folder.join("home"),
            folder: folder.to_owned(),
        }
    }

    /// An operator whom another one has invited.
    pub async fn enrolled(
        program: &str,
        world: &World,
        op: &Operator,
        addr: SocketAddr,
        name: &str,
    ) -> Self {
        let invite = AdminRequest::Invite { subject: None };
        let AdminReply::Invited { token } = op.ask(invite).await.expect("invites") else {
            panic!("others have to agree")
        };
        let desk = Self::new(program, &world.dir.path().join(name));
        let file = desk.file("invitation", &token);
        let said = desk.enrol(addr, &file);
        assert_eq!(said.code, 0, "{}", said.err);
        desk
    }

    /// `lethe-admin enrol`.
    pub fn enrol(&self, addr: SocketAddr, invitation: &str) -> Said {
        let server = addr.to_string();
        self.run(&["enrol", "--server", &server, "--invitation", invitation])
    }

    /// A command.
    pub fn run(&self, args: &[&str]) -> Said {
        let mut command = Command::new(&self.program);
        let out = command.arg("--home").arg(&self.home).args(args).output();
        let out = out.expect("runs");
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        Said {
            code: out.status.code().expect("ended by itself"),
            out: text(&out.stdout),
            err: text(&out.stderr),
        }
    }

    /// Writes a file beside the home; its path.
    pub fn file(&self, name: &str, content: &str) -> String {
        let path = self.folder.join(name);
        std::fs::write(&path, content).expect("writes");
        path.to_string_lossy().into_owned()
    }
}
