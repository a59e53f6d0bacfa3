import ArgumentParser
import Glibc
import MachnetInspect

struct Inspect: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Says whether a program can be intercepted, and if not, why.",
    discussion: """
      Reads the program's file and its shared libraries as the loader would; runs nothing. Scripts are followed to \
      their interpreter. The answer is for the user who asks: others may lose the preload to a setuid bit.

      Exit codes: 0 it can be intercepted; 1 it cannot; 2 it could not be inspected; 64 the \
      command line is wrong.
      """)

  @Argument(help: "A program's file, or a name to be looked up in PATH.")
  var program: String

  @Flag(name: .long, help: "Print JSON: the verdict and all that it rests on.")
  var json = false

  func run() throws {
    guard let preload = preloadLibrary() else {
      complain("machnet: cannot find libmachnet-preload.so beside \(executable() ?? "this program") or in ../lib; build it")
      throw ExitCode(2)
    }
    let inspection: Inspection
    do throws(InspectionError) {
      inspection = try Inspector(preload: preload, environment: inspectionEnvironment(), uid: geteuid(), gid: getegid())
        .inspect(program)
    } catch {
      complain("machnet: \(error)")
      throw ExitCode(2)
    }
    print(json ? try inspection.json : readable(inspection))
    if !inspection.isInterceptable { throw ExitCode(1) }
  }
}

/// What an inspection reads of the environment.
func inspectionEnvironment() -> [String: String] {
  var found: [String: String] = [:]
  for name in ["PATH", "LD_LIBRARY_PATH"] { found[name] = environment(name) }
  return found
}

/// The report for a person: the verdict, then what it rests on.
func readable(_ inspection: Inspection) -> String {
  var lines = ["\(inspection.program): \(inspection.verdict)"]
  func row(_ name: String, _ value: String?) {
    guard let value, !value.isEmpty else { return }
    lines.append("  \(name)\(String(repeating: " ", count: max(1, 18 - name.count)))\(value)")
  }
  for script in inspection.scripts { row("script", script) }
  row("file", inspection.file)
  row("format", "\(inspection.kind.rawValue), \(inspection.machine), \(inspection.bits) bits")
  let versions = [
    inspection.glibcNeeded.map { "needs \($0)" }, inspection.glibcFound.map { "finds \($0)" },
  ].compactMap { $0 }
  row("loader", inspection.interpreter)
  row("libc", inspection.libc.map { $0 + (versions.isEmpty ? "" : " (\(versions.joined(separator: ", ")))") })
  row(
    "rights",
    [
      inspection.setuid ? "setuid" : nil, inspection.setgid ? "setgid" : nil,
      inspection.capabilities ? "file capabilities" : nil,
    ].compactMap { $0 }.joined(separator: ", "))
  row("Go build id", inspection.goBuildID)
  row("RPATH", inspection.rpath.joined(separator: ":"))
  row("RUNPATH", inspection.runpath.joined(separator: ":"))
  row("intercepted", inspection.intercepted.keys.sorted().joined(separator: " "))
  for (call, files) in inspection.notIntercepted.sorted(by: { $0.key < $1.key }) {
    row("not intercepted", "\(call) (\(listed(files))): \(reasonForKernel(ofCall: call))")
  }
  for obstacle in inspection.obstacles { row("obstacle", obstacle) }
  for note in inspection.notes { row("note", note) }
  for library in inspection.libraries {
    row("library", "\(library.name) \(library.path.map { "=> \($0) (\(library.foundBy ?? "?"))" } ?? "not found")")
  }
  return lines.joined(separator: "\n")
}
