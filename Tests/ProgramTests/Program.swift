import Foundation

/// Something that the harness needs and did not get. What it prints is the whole story for whoever reads a CI log.
struct Failure: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

/// Waits until `condition` holds. The deadline bounds a failure; nothing is assumed to be true because time has passed.
func waitUntil(_ what: String, seconds: Double = 10, until condition: () throws -> Bool) throws {
  let deadline = Date(timeIntervalSinceNow: seconds)
  while try !condition() {
    guard Date() < deadline else { throw Failure("\(what): not after \(seconds) s") }
    Thread.sleep(forTimeInterval: 0.005)
  }
}

/// A program that runs, its input a pipe and its output in files.
final class Program {
  let name: String
  let command: [String]
  private let process = Process()
  private let input = Pipe()
  private let outputFile, errorFile: URL

  struct Result {
    /// The exit status, or minus the signal that ended it.
    let status: Int32
    let output, errors: String
  }

  /// - Parameter command: looked up in PATH.
  init(_ name: String, _ command: [String], in directory: URL, environment: [String: String] = [:]) throws {
    self.name = name
    self.command = command
    let base = directory.appending(path: "\(name)-\(UUID().uuidString.prefix(8))")
    outputFile = base.appendingPathExtension("out")
    errorFile = base.appendingPathExtension("err")
    // The kernel ends the program should this process die first.
    process.executableURL = URL(filePath: "/usr/bin/setpriv")
    process.arguments = ["--pdeathsig", "KILL", "--"] + command
    process.currentDirectoryURL = directory
    process.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
    process.standardInput = input
    for file in [outputFile, errorFile] { try Data().write(to: file) }
    let files = try [outputFile, errorFile].map(FileHandle.init(forWritingTo:))
    process.standardOutput = files[0]
    process.standardError = files[1]
    // A child inherits the mask of the thread that spawns it, and pool threads block most signals.
    var none = sigset_t(), mine = sigset_t()
    unsafe sigemptyset(&none)
    unsafe pthread_sigmask(SIG_SETMASK, &none, &mine)
    defer { unsafe pthread_sigmask(SIG_SETMASK, &mine, nil) }
    try process.run()
    // The child has its own.
    for file in files + [input.fileHandleForReading] { try file.close() }
  }

  /// setpriv, ip, taskset and `machnet run` all exec: this is the program itself.
  var pid: Int32 { process.processIdentifier }
  var isRunning: Bool { process.isRunning }
  var output: String { (try? String(contentsOf: outputFile, encoding: .utf8)) ?? "" }
  var errors: String { (try? String(contentsOf: errorFile, encoding: .utf8)) ?? "" }

  /// Command and last lines of output.
  var story: String {
    let tail = (output + errors).split(separator: "\n").suffix(15).joined(separator: "\n  | ")
    return "\(name): \(command.joined(separator: " "))\n  | \(tail)"
  }

  func send(_ signal: Int32) { if process.isRunning { kill(pid, signal) } }
  func type(_ line: String) { try? input.fileHandleForWriting.write(contentsOf: Data((line + "\n").utf8)) }
  func closeInput() { try? input.fileHandleForWriting.close() }

  /// Waits for the program to end; one that does not is killed and told of.
  @discardableResult
  func wait(seconds: Double) throws -> Result {
    do {
      try waitUntil("end of \(name)", seconds: seconds) { !process.isRunning }
    } catch {
      let story = story
      end()
      throw Failure("\(error)\n\(story)")
    }
    closeInput()
    let status = process.terminationReason == .exit ? process.terminationStatus : -process.terminationStatus
    return Result(status: status, output: output, errors: errors)
  }

  /// Asks by `signal`, then waits.
  @discardableResult
  func stop(_ signal: Int32 = SIGINT, seconds: Double = 10) throws -> Result {
    send(signal)
    return try wait(seconds: seconds)
  }

  /// Ends the program and the children it left, whatever it does. Foundation starts every process in a group of its own.
  func end() {
    kill(-pid, SIGKILL)
    if process.isRunning {
      kill(pid, SIGKILL)
      process.waitUntilExit()
    }
    closeInput()
  }

  /// Waits until a socket in the program's network namespace is bound to `port`.
  func waitBound(_ port: Int, protocol: String = "udp", seconds: Double = 20) throws {
    let wanted = String(format: ":%04X", port)
    try waitUntil("\(name) at port \(port)", seconds: seconds) {
      guard process.isRunning else { throw Failure("ended before it was ready\n\(story)") }
      return ["", "6"].contains { family in
        let table = (try? String(contentsOfFile: "/proc/\(pid)/net/\(`protocol`)\(family)", encoding: .utf8)) ?? ""
        return table.split(separator: "\n").dropFirst().contains {
          let fields = $0.split(separator: " ")
          return fields.count > 2 && fields[1].hasSuffix(wanted)
        }
      }
    }
  }
}
