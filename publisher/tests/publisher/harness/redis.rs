//! A redis-server on a free port, and a connection to it that knows nothing but the protocol.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

pub struct Redis {
    process: Child,
    port: u16,
    directory: PathBuf,
    arguments: Vec<String>,
}

impl Redis {
    /// Keeps nothing on disk.
    pub fn start() -> Self {
        Self::start_with(&["--save", "", "--appendonly", "no"])
    }

    pub fn start_with(arguments: &[&str]) -> Self {
        // The port is free until somebody else takes it first; then redis-server exits, and the next one is tried.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let directory = std::env::temp_dir().join(format!("publisher-test-{}-{port}", std::process::id()));
            fs::create_dir_all(&directory).unwrap();
            let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
            let mut redis = Self { process: spawn(port, &directory, &arguments), port, directory, arguments };
            if redis.answers() {
                return redis;
            }
        }
        panic!("redis-server does not start");
    }

    /// A Sentinel that watches over this server under the name "books".
    pub fn sentinel(&self) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = std::env::temp_dir().join(format!("publisher-test-{}-{port}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("sentinel.conf"), format!("sentinel monitor books 127.0.0.1 {} 1\n", self.port))
            .unwrap();
        let arguments: Vec<_> = ["sentinel.conf", "--sentinel"].map(str::to_owned).into();
        let mut sentinel = Self { process: spawn(port, &directory, &arguments), port, directory, arguments };
        assert!(sentinel.answers(), "the Sentinel does not start");
        sentinel
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn connection(&self) -> Connection {
        Connection::open(self.port).unwrap()
    }

    /// Stops the process without warning.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again on the same port, with the same files.
    pub fn start_again(&mut self) {
        self.process = spawn(self.port, &self.directory, &self.arguments);
        assert!(self.answers(), "redis-server does not start again");
    }

    /// From now on the kernel takes what is sent, and nobody answers.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    fn answers(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && self.process.try_wait().unwrap().is_none() {
            let pong =
                Connection::open(self.port).is_ok_and(|mut connection| connection.send(&["PING"]).text() == "PONG");
            if pong {
                return true;
            }
            sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn spawn(port: u16, directory: &PathBuf, arguments: &[String]) -> Child {
    // A file must come first.
    let (file, arguments) =
        arguments.split_at(usize::from(arguments.first().is_some_and(|first| !first.starts_with("-"))));
    Command::new("redis-server")
        .args(file)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(arguments)
        .current_dir(directory)
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is installed")
}

pub struct Connection {
    stream: BufReader<TcpStream>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    Text(Vec<u8>),
    Integer(i64),
    Array(Vec<Reply>),
    Error(String),
    Nothing,
}

impl Connection {
    fn open(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    pub fn send(&mut self, command: &[&str]) -> Reply {
        let mut request = format!("*{}\r\n", command.len());
        for part in command {
            request += &format!("${}\r\n{part}\r\n", part.len());
        }
        let written = self.stream.get_mut().write_all(request.as_bytes());
        written.and_then(|()| self.read()).unwrap_or_else(|error| Reply::Error(error.to_string()))
    }

    /// The next reply, or the next message of a subscription.
    pub fn read(&mut self) -> std::io::Result<Reply> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let line = line.trim_end();
        let (kind, rest) = line.split_at_checked(1).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let number = || rest.parse::<i64>().unwrap();
        Ok(match kind {
            "+" => Reply::Text(rest.into()),
            "-" => Reply::Error(rest.into()),
            ":" => Reply::Integer(number()),
            "$" | "*" if number() < 0 => Reply::Nothing,
            "$" => {
                let mut text = vec![0; usize::try_from(number()).unwrap() + 2];
                self.stream.read_exact(&mut text)?;
                text.truncate(text.len() - 2);
                Reply::Text(text)
            }
            "*" => Reply::Array((0..number()).map(|_| self.read()).collect::<Result<_, _>>()?),
            other => panic!("{other:?} is no reply"),
        })
    }
}

impl Reply {
    pub fn array(self) -> Vec<Reply> {
        match self {
            Self::Array(items) => items,
            other => panic!("{other:?} is no array"),
        }
    }

    pub fn integer(self) -> i64 {
        match self {
            Self::Integer(number) => number,
            other => panic!("{other:?} is no integer"),
        }
    }

    pub fn bytes(self) -> Vec<u8> {
        match self {
            Self::Text(bytes) => bytes,
            other => panic!("{other:?} is no text"),
        }
    }

    /// Empty for anything that is no text.
    pub fn text(self) -> String {
        match self {
            Self::Text(bytes) => String::from_utf8(bytes).unwrap(),
            _ => String::new(),
        }
    }
}
