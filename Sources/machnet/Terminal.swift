import CLinux
import Glibc
import MachnetControl

/// SIGTERM, SIGINT and SIGHUP as input, so that the terminal is given back whatever ends the program.
final class Signals {
  let descriptor: Int32

  init() throws(SystemError) { descriptor = try ControlServer.blockSignals() }

  /// Whether one has come, or comes within so many milliseconds.
  func isPending(within milliseconds: Int32) -> Bool {
    var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    return unsafe poll(&entry, 1, milliseconds) > 0
  }
}

/// A terminal in raw mode, on its alternate screen.
final class Terminal {
  private var saved = termios()

  enum Key: Equatable {
    case character(Character)
    case none
    /// The terminal has gone, or a signal asked for the end.
    case end
  }

  init() throws(SystemError) {
    guard unsafe tcgetattr(STDIN_FILENO, &saved) == 0 else { throw SystemError(errno, "read the terminal's settings") }
    var raw = saved
    raw.c_lflag &= ~tcflag_t(ICANON | ECHO | ISIG)
    guard unsafe tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0 else { throw SystemError(errno, "change the terminal's settings") }
    // The alternate screen, the cursor hidden.
    emit("\u{1b}[?1049h\u{1b}[?25l")
  }

  func restore() {
    emit("\u{1b}[?25h\u{1b}[?1049l")
    _ = unsafe tcsetattr(STDIN_FILENO, TCSANOW, &saved)
  }

  func size() -> (columns: Int, rows: Int) {
    var size = winsize()
    guard unsafe ioctl(STDOUT_FILENO, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0, size.ws_row > 0 else { return (80, 24) }
    return (Int(size.ws_col), Int(size.ws_row))
  }

  /// Lines from the top; what was there before is gone.
  func draw(_ lines: [String]) {
    emit("\u{1b}[H" + lines.prefix(size().rows).map { "\($0)\u{1b}[K" }.joined(separator: "\r\n") + "\u{1b}[J")
  }

  /// The next key, waited for so many seconds.
  func key(within seconds: Double, or signals: Signals) -> Key {
    var sources = [
      pollfd(fd: STDIN_FILENO, events: Int16(POLLIN), revents: 0),
      pollfd(fd: signals.descriptor, events: Int16(POLLIN), revents: 0),
    ]
    let ready = unsafe poll(&sources, 2, Int32(seconds * 1000) + 1)
    guard ready > 0 else { return .none }
    if sources[1].revents != 0 { return .end }
    var byte: UInt8 = 0
    guard unsafe read(STDIN_FILENO, &byte, 1) == 1 else { return .end }
    return .character(Character(UnicodeScalar(byte)))
  }

  private func emit(_ text: String) {
    var text = text
    text.withUTF8 { bytes in
      var written = 0
      while written < bytes.count {
        let count = unsafe write(STDOUT_FILENO, bytes.baseAddress! + written, bytes.count - written)
        if count <= 0 { return }
        written += count
      }
    }
  }
}
