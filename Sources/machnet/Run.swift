import ArgumentParser
import CMachnetABI
import Glibc
import MachnetControl
import MachnetInspect

struct Run: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Runs a program whose marked flows leave the kernel.",
    discussion: """
      The program takes this process's place: signals reach it, and its exit code is its own.

      The preload library reads MACHNET_SOCKET (the daemon's), MACHNET_SPIN_US (0 to 1000000) and MACHNET_YIELD (true or false) instead \
      of a profile, and MACHNET_LOG (error, info or debug: it says on standard error what it does). What does not fit is \
      ignored there, and told here.

      Profiles: latency (looks at the rings for 1 ms before it sleeps), throughput (sleeps after 10 us, so that \
      bursts gather), shared-core (gives the core away between looks, and has glibc register no restartable sequences, which would \
      make each switch longer), real-time (the same under SCHED_FIFO: keep it off the engines' cores), and those under 'profiles:' in \
      the config.

      Exit codes: the program's own; or, when it was not started, 1 the config is wrong; 64 the command line is wrong; \
      125 refused by --strict; 126 it could not be executed; 127 it was not found (as in a shell).
      """)

  @OptionGroup var daemon: DaemonOptions

  @Option(name: .long, help: "How the program waits: latency, throughput, shared-core, real-time or one of the config's profiles.")
  var profile: String?

  @Flag(name: .long, help: "Refuse to start what cannot be intercepted, or without a daemon that answers.")
  var strict = false

  @Flag(name: .long, help: "Print the command that would be executed, with its environment, and end.")
  var dryRun = false

  @Argument(parsing: .captureForPassthrough, help: "The program and its arguments, after '--'.")
  var command: [String] = []

  func validate() throws {
    // Passing through begins with the first word that is no option of ours, and it took --help for one.
    if command.first == "--help" || command.first == "-h" { throw CleanExit.helpRequest(self) }
    if let first = command.first, first.hasPrefix("-"), first != "--" {
      throw ValidationError("there is no option '\(first)'; a program with such a name goes behind '--'")
    }
    guard command != [] && command != ["--"] else { throw ValidationError("expected -- PROGRAM [ARGUMENTS]") }
    if let profile, daemon.config == nil { _ = try chosen(profile, nil) }
  }

  func run() throws {
    // What is passed through begins with the separator, if there is one.
    let command = Array(self.command.first == "--" ? self.command.dropFirst() : self.command[...])
    let program = command[0]
    guard let library = preloadLibrary() else {
      complain("machnet: cannot find libmachnet-preload.so beside \(executable() ?? "this program") or in ../lib; build it")
      throw ExitCode(126)
    }
    guard !library.contains(where: { $0 == " " || $0 == ":" }) else {
      complain("machnet: \(library) cannot be preloaded: a path with a space or colon is no entry of LD_PRELOAD; install Machnet elsewhere")
      throw ExitCode(126)
    }
    let config = try daemon.statedConfig()
    let profile = try self.profile.map { try chosen($0, config) } ?? Config.Profile()
    var variables = profile.environment
    if let tunables = mergedTunables(environment("GLIBC_TUNABLES"), adding: profile.tunables) { variables.append(("GLIBC_TUNABLES", tunables)) }
    if let socket = config?.control.socket ?? daemon.socket { variables.append(("MACHNET_SOCKET", socket)) }
    // The loader of a 32-bit program would complain of ours on stderr, and go on without it.
    if canMap(library, into: program, environment: inspectionEnvironment()) {
      let runtimes = sanitizerRuntimes(of: program, environment: inspectionEnvironment())
      variables.append(
        ("LD_PRELOAD", mergedPreload(environment("LD_PRELOAD"), adding: library, sanitizersOfProgram: runtimes)))
    }
    let ignored = misunderstood(except: variables.map(\.0))
    for text in ignored { complain("machnet: \(text)") }
    if strict {
      if !ignored.isEmpty {
        complain("machnet: \(program) is not started (--strict)")
        throw ExitCode(125)
      }
      try refuseUnlessCertain(program, library)
    }
    if dryRun {
      let scheduled = profile.fifo.map { ["chrt", "--fifo", "\($0)"] } ?? []
      print((scheduled + ["env"] + variables.map { "\($0.0)=\($0.1)" } + command).map(quotedForShell).joined(separator: " "))
      return
    }
    if let fifo = profile.fifo { try schedule(program, fifo) }
    for (name, value) in variables { _ = unsafe setenv(name, value, 1) }
    var arguments: [UnsafeMutablePointer<CChar>?] = unsafe command.map { unsafe strdup($0) } + [nil]
    _ = unsafe execvp(program, &arguments)
    let code = errno
    // A script or program whose interpreter is missing is ENOENT, too (execve(2)).
    let isThere = unsafe code == ENOENT && program.contains("/") && access(program, F_OK) == 0
    complain("machnet: \(program): \(isThere ? "its interpreter is not there; machnet inspect says which" : unsafe String(cString: strerror(code)))")
    throw ExitCode(code == ENOENT && !isThere ? 127 : 126)
  }

  /// Settings of the environment that the preload library will not obey (`Waiting` and `start` in the shim).
  private func misunderstood(except replaced: [String]) -> [String] {
    let settings: [(name: String, expected: String, fits: (String) -> Bool)] = [
      ("MACHNET_SPIN_US", "0 to 1000000", { $0.utf8.count <= 7 && $0.utf8.allSatisfy { 48...57 ~= $0 } && Int($0) ?? .max <= 1_000_000 }),
      ("MACHNET_YIELD", "true or false", { ["true", "false"].contains($0) }),
      ("MACHNET_LOG", "error, info or debug", { ["error", "info", "debug"].contains($0) }),
    ]
    return settings.compactMap { name, expected, fits in
      guard !replaced.contains(name), let value = environment(name), !fits(value) else { return nil }
      return "\(name)=\(value) is ignored: expected \(expected)"
    }
  }

  /// What the program inherits.
  private func schedule(_ program: String, _ priority: Int) throws {
    var parameter = sched_param(sched_priority: CInt(priority))
    if unsafe sched_setscheduler(0, SCHED_FIFO, &parameter) == 0 { return }
    let problem = unsafe String(cString: strerror(errno))
    complain(
      "machnet: \(program) is not started: SCHED_FIFO at priority \(priority), as the profile asks: \(problem) (it takes CAP_SYS_NICE or ulimit -r \(priority))")
    throw ExitCode(126)
  }

  private func chosen(_ profile: String, _ config: Config?) throws -> Config.Profile {
    let profiles = config?.profiles ?? Config.Profile.builtIn
    guard let chosen = profiles[profile] else {
      throw ValidationError(
        "there is no profile '\(profile)', but \(profiles.keys.sorted().joined(separator: ", "))"
          + (config == nil ? "; --config names a file with others" : ""))
    }
    return chosen
  }

  private func refuseUnlessCertain(_ program: String, _ library: String) throws {
    let refusal = ExitCode(125)
    let inspection: Inspection
    do throws(InspectionError) {
      inspection = try Inspector(
        preload: library, environment: inspectionEnvironment(), uid: geteuid(), gid: getegid()
      ).inspect(program)
    } catch {
      complain("machnet: \(error)\nmachnet: not started (--strict)")
      throw refusal
    }
    guard inspection.isInterceptable else {
      complain("machnet: \(program) \(inspection.verdict)\nmachnet: not started (--strict); machnet inspect says more")
      throw refusal
    }
    do {
      let client = try daemon.connect()
      let reply = try client.call(client.request(MN_REQUEST_HELLO))
      guard reply.header.status == 0, reply.header.version == UInt16(MN_ABI_VERSION) else {
        throw SystemError(EPROTO, "agree with the daemon (is it of another version?)")
      }
    } catch {
      if let error = error as? SystemError { complain(advised(error)) }
      complain("machnet: \(program) is not started (--strict)")
      throw refusal
    }
  }
}

/// A word as a POSIX shell reads it back.
func quotedForShell(_ word: String) -> String {
  let plain = word.utf8.allSatisfy { byte in
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"), UInt8(ascii: "0")...UInt8(ascii: "9"): true
    default: "_-./:=,+@%".utf8.contains(byte)
    }
  }
  return plain && !word.isEmpty ? word : "'" + word.replacing("'", with: "'\\''") + "'"
}

/// The preload list with one more library. What is there stays, in its order, but for the runtimes of sanitizers, which
/// insist on being first, those that the program is linked with included; ours comes last, so that a library which wraps
/// sockets too sits between program and us.
func mergedPreload(_ existing: String?, adding library: String, sanitizersOfProgram: [String] = []) -> String {
  let entries = (existing ?? "").split(whereSeparator: { $0 == ":" || $0 == " " }).map(String.init)
    .filter { $0 != library }
  var runtimes = entries.filter(isSanitizerRuntime)
  runtimes += sanitizersOfProgram.filter { !runtimes.contains($0) }
  return (runtimes + entries.filter { !isSanitizerRuntime($0) } + [library]).joined(separator: ":")
}

/// glibc's tunables with some more; what is said of one of them already stays. nil: nothing is to be added.
func mergedTunables(_ existing: String?, adding tunables: [String]) -> String? {
  let entries = (existing ?? "").split(separator: ":").map(String.init)
  let new = tunables.filter { one in !entries.contains { $0.hasPrefix(one.prefix { $0 != "=" } + "=") } }
  return new.isEmpty ? nil : (entries + new).joined(separator: ":")
}

func executable() -> String? {
  var path = [CChar](repeating: 0, count: Int(PATH_MAX) + 1)
  let length = unsafe readlink("/proc/self/exe", &path, path.count - 1)
  return length > 0 ? String(decoding: path[..<length].map { UInt8(bitPattern: $0) }, as: UTF8.self) : nil
}

/// Beside this program, as the build puts it, or in ../lib, as an installation does.
func preloadLibrary() -> String? {
  guard let own = executable(), let slash = own.lastIndex(of: "/") else { return nil }
  let directory = own[..<slash]
  let parent = directory.lastIndex(of: "/").map { directory[..<$0] } ?? ""
  return ["\(directory)/libmachnet-preload.so", "\(parent)/lib/libmachnet-preload.so"]
    .first { unsafe access($0, R_OK) == 0 }
}
