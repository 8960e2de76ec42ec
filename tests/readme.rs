//! The README's first page, followed word for word in an empty project, compiles and runs. Its own command, because it
//! builds everything anew: `cargo test --test readme`.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The first block of a language after a place in the README.
fn block<'a>(readme: &'a str, language: &str) -> &'a str {
    let start = readme.find(&format!("```{language}\n")).expect("the block is there");
    let code = &readme[start..].split_once('\n').unwrap().1;
    code.split_once("```").unwrap().0
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder that goes with its value.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn connect() -> Option<TcpStream> {
    TcpStream::connect_timeout(&"127.0.0.1:3000".parse().unwrap(), Duration::from_secs(1)).ok()
}

#[test]
fn the_first_page_compiles_and_runs() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(here.join("README.md")).unwrap();
    assert!(connect().is_none(), "the quick start's port 3000 is taken by something else");

    let folder = Folder(std::env::temp_dir().join(format!("tidings-readme-{}", std::process::id())));
    fs::create_dir_all(folder.0.join("src")).unwrap();
    // What the README leaves to `cargo new`, and the path that stands in for the registry.
    let manifest = format!(
        "[package]\nname = \"first-page\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n{}\n[patch.crates-io]\ntidings = {{ path = {here:?} }}\n",
        block(&readme, "toml")
    );
    fs::write(folder.0.join("Cargo.toml"), manifest).unwrap();
    fs::write(folder.0.join("src/main.rs"), block(&readme, "rust,no_run")).unwrap();
    fs::copy(here.join("Cargo.lock"), folder.0.join("Cargo.lock")).unwrap();

    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| here.join("target"), PathBuf::from);
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet"])
        .env("CARGO_TARGET_DIR", target.join("readme"))
        .current_dir(&folder.0)
        .status()
        .unwrap();
    assert!(built.success());

    let program = Command::new(target.join("readme/debug/first-page")).stdin(Stdio::null()).spawn().unwrap();
    let _program = Running(program);
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut events = loop {
        match connect() {
            Some(stream) => break stream,
            None => assert!(Instant::now() < deadline, "the quick start does not listen"),
        }
    };

    events.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    events.write_all(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut lines = BufReader::new(events).lines().map(Result::unwrap);
    // Published only once the client has its first id, from which nothing can be missed.
    assert!(lines.by_ref().any(|line| line.starts_with("id: ")));
    let mut publish = connect().unwrap();
    publish
        .write_all(
            b"POST /publish HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello",
        )
        .unwrap();
    assert!(lines.by_ref().any(|line| line == "data: hello"));
}
