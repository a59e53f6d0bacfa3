import ArgumentParser
import Glibc
import MachnetControl

struct Run: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Runs a program whose marked flows leave the kernel.",
    discussion: """
      The program's exit code is its own. 126: it could not be executed; 127: it was not found (as in a shell). \
      MACHNET_LOG=debug has the preload library say what it does.
      """)

  @OptionGroup var daemon: DaemonOptions

  @Argument(parsing: .captureForPassthrough, help: "The program and its arguments, after '--'.")
  var command: [String] = []

  func run() throws {
    // What is passed through begins with the separator, if there is one.
    let command = Array(self.command.first == "--" ? self.command.dropFirst() : self.command[...])
    guard let program = command.first else { throw ValidationError("expected -- PROGRAM [ARGUMENTS]") }
    guard let library = preloadLibrary() else {
      complain("machnet: cannot find libmachnet-preload.so beside \(executable() ?? "this program") or in ../lib; build it")
      throw ExitCode(126)
    }
    guard !library.contains(where: { $0 == " " || $0 == ":" }) else {
      complain("machnet: \(library) cannot be preloaded: a path with a space or colon is no entry of LD_PRELOAD")
      throw ExitCode(126)
    }
    if let socket = try daemon.statedSocket() { _ = unsafe setenv("MACHNET_SOCKET", socket, 1) }
    _ = unsafe setenv("LD_PRELOAD", mergedPreload(environment("LD_PRELOAD"), adding: library), 1)
    var arguments: [UnsafeMutablePointer<CChar>?] = unsafe command.map { unsafe strdup($0) } + [nil]
    _ = unsafe execvp(program, &arguments)
    let code = errno
    complain("machnet: \(program): \(unsafe String(cString: strerror(code)))")
    throw ExitCode(code == ENOENT ? 127 : 126)
  }
}

/// The preload list with one more library. What is there stays, in its order, but for the runtimes of sanitizers, which
/// insist on being first; ours comes last, so that a library which wraps sockets too sits between program and us.
func mergedPreload(_ existing: String?, adding library: String) -> String {
  let entries = (existing ?? "").split(whereSeparator: { $0 == ":" || $0 == " " }).map(String.init)
    .filter { $0 != library }
  let runtimes = entries.filter(isSanitizerRuntime)
  return (runtimes + entries.filter { !isSanitizerRuntime($0) } + [library]).joined(separator: ":")
}

private func isSanitizerRuntime(_ path: String) -> Bool {
  let name = path.split(separator: "/").last ?? ""
  return ["libasan", "libtsan", "liblsan", "libubsan", "libmsan", "libhwasan", "libclang_rt."]
    .contains { name.hasPrefix($0) }
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
