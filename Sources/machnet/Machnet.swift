import ArgumentParser
import Glibc
import MachnetControl

/// What a person does with a daemon.
@main
struct Machnet: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "machnet", abstract: "Runs programs over Machnet and shows what it does for them.",
    discussion: """
      'machnet help SUBCOMMAND' says more. Programs stay on the kernel where no daemon runs, or no rule of its config \
      names their flows.

      Exit codes: 0 done; 64 the command line is wrong; others are the subcommands' own.
      """,
    version: machnetVersion,
    subcommands: [Run.self, Status.self, Top.self, Capture.self, Explain.self, Inspect.self, Reload.self])
}

/// Which daemon is meant.
struct DaemonOptions: ParsableArguments {
  @Option(name: .long, help: "The daemon's control socket (default: $MACHNET_SOCKET, then \(defaultControlSocket)).")
  var socket: String?

  @Option(name: .long, help: "The daemon's config file, which names its control socket.")
  var config: String?

  func validate() throws {
    if socket != nil && config != nil { throw ValidationError("--socket and --config both name a daemon; give one") }
  }

  /// The config, if the command line names one.
  func statedConfig() throws -> Config? {
    guard let config else { return nil }
    do throws(ConfigFailure) {
      return try Config.load(file: config)
    } catch {
      complain(error.description)
      throw ExitCode.failure
    }
  }

  /// Where the daemon is to be found.
  func path() throws -> String {
    try statedConfig()?.control.socket ?? socket ?? environment("MACHNET_SOCKET") ?? defaultControlSocket
  }

  /// A connection to the daemon, or an explanation on standard error.
  func connect() throws -> ControlClient {
    let path = try path()
    do throws(SystemError) {
      return try ControlClient(path: path)
    } catch {
      complain(advised(error))
      throw ExitCode.failure
    }
  }
}

func environment(_ name: String) -> String? {
  unsafe getenv(name).map { unsafe String(cString: $0) }.flatMap { $0.isEmpty ? nil : $0 }
}

func complain(_ message: String) {
  var text = message + "\n"
  text.withUTF8 { bytes in _ = unsafe write(STDERR_FILENO, bytes.baseAddress, bytes.count) }
}
