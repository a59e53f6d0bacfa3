import CElf
import Foundation

/// Whether a program can be intercepted, and everything that the answer rests on. JSON with snake_case keys, which may
/// be added to, never renamed.
public struct Inspection: Codable, Sendable {
  /// As it was named.
  public var program: String
  /// The ELF file that runs: for a script, its interpreter.
  public var file: String
  /// `#!` files on the way there.
  public var scripts: [String]
  public var isInterceptable: Bool
  /// In one line, without the program's name.
  public var verdict: String
  /// Why not. Empty if it is.
  public var obstacles: [String]
  /// What a person may trip over although the program can be intercepted.
  public var notes: [String]

  public var kind: Kind
  public var bits: Int
  public var machine: String
  public var interpreter: String?
  public var libc: String?
  /// The latest version that the program and its libraries need of it, and the latest that it has.
  public var glibcNeeded: String?
  public var glibcFound: String?
  public var setuid, setgid, capabilities: Bool
  public var isGo: Bool
  public var goBuildID: String?
  public var usesIOUring: Bool
  /// Calls that the preload takes, and where they are imported (file names).
  public var intercepted: [String: [String]]
  /// Calls that move data past it.
  public var notIntercepted: [String: [String]]
  /// System calls without libc: file name, call, places.
  public var systemCalls: [String: [String: Int]]
  /// Files that look for names or libraries while they run (dlsym, dlopen).
  public var looksUp: [String]
  public var rpath, runpath: [String]
  public var libraries: [Library]

  public enum Kind: String, Codable, Sendable {
    case dynamic
    case staticallyLinked = "static"
    case staticPIE = "static-pie"
    /// A shared library: nothing that one runs.
    case library
    case other
  }

  public struct Library: Codable, Sendable {
    public var name: String
    /// nil: not found.
    public var path: String?
    /// RPATH, LD_LIBRARY_PATH, RUNPATH, ld.so.cache, default, path
    public var foundBy: String?
    /// Who wants it.
    public var neededBy: String
  }

  public var json: String {
    get throws {
      let encoder = JSONEncoder()
      encoder.keyEncodingStrategy = .convertToSnakeCase
      encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
      return String(decoding: try encoder.encode(self), as: UTF8.self)
    }
  }
}

/// Inspects programs for one preload library and one user.
public struct Inspector {
  private let preload: ElfFile
  private let calls: CallTable
  /// Latest glibc that the preload library needs.
  private let preloadNeeds: [String]
  private let environment: [String: String]
  private let uid, gid: UInt32

  /// Of shared libraries, all levels.
  static var librariesMax: Int { 1024 }

  /// - Parameters:
  ///   - preload: path of the preload library.
  ///   - environment: PATH and LD_LIBRARY_PATH are used.
  ///   - uid, gid: of the user who would run the program.
  public init(preload: String, environment: [String: String], uid: UInt32, gid: UInt32) throws(InspectionError) {
    let preload = try ElfFile(path: preload)
    self.preload = preload
    calls = try CallTable(preload: preload)
    preloadNeeds = preload.neededVersions(of: "libc.so.6")
    self.environment = environment
    self.uid = uid
    self.gid = gid
  }

  public func inspect(_ program: String) throws(InspectionError) -> Inspection {
    let executed = try Executed(program, searchPath: environment["PATH"] ?? "/usr/local/bin:/usr/bin:/bin")
    let file = try ElfFile(path: executed.path)
    var inspection = Inspection(
      program: program, file: executed.path, scripts: executed.scripts, isInterceptable: false, verdict: "", obstacles: [],
      notes: [], kind: kind(of: file), bits: file.bits, machine: name(ofMachine: file.machine),
      interpreter: file.interpreter, libc: libc(of: file), setuid: file.privileges.setuid,
      setgid: file.privileges.setgid, capabilities: file.privileges.capabilities, isGo: false, usesIOUring: false,
      intercepted: [:], notIntercepted: [:], systemCalls: [:], looksUp: [], rpath: file.names(MNELF_DT_RPATH),
      runpath: file.names(MNELF_DT_RUNPATH), libraries: [])
    if !isForeign(file) {
      lookForGo(file, &inspection)
      try lookAtCode(file, lastComponent(executed.path), &inspection)
      if inspection.kind == .dynamic { try followLibraries(of: file, &inspection) }
    }
    judge(file, &inspection)
    return inspection
  }

  private func isForeign(_ file: ElfFile) -> Bool {
    file.machine != preload.machine || file.bits != preload.bits || file.isLittleEndian != preload.isLittleEndian
  }

  private func kind(of file: ElfFile) -> Inspection.Kind {
    if file.interpreter != nil { return .dynamic }
    switch file.type {
    case MNELF_ET_EXEC: return .staticallyLinked
    case MNELF_ET_DYN:
      let isPIE = file[MNELF_DT_FLAGS_1].map { $0 & UInt64(MNELF_DF_1_PIE) != 0 } ?? false
      return isPIE ? .staticPIE : .library
    default: return .other
    }
  }

  private func libc(of file: ElfFile) -> String? {
    guard let interpreter = file.interpreter.map(lastComponent) else { return nil }
    if interpreter.hasPrefix("ld-musl") { return "musl" }
    if interpreter.hasPrefix("ld-linux") || interpreter.hasPrefix("ld64") || interpreter == "ld.so.1" { return "glibc" }
    return interpreter.hasPrefix("linker") ? "bionic" : "unknown"
  }

  private func lookForGo(_ file: ElfFile, _ inspection: inout Inspection) {
    let marks: Set<String> = [".go.buildinfo", ".gopclntab", ".note.go.buildid"]
    inspection.goBuildID = file.note(owner: "Go", type: 4).map { String(decoding: $0, as: UTF8.self) }
    inspection.isGo = inspection.goBuildID != nil || file.sections.contains { marks.contains($0.name) }
  }

  /// Imports and system calls of the program or of one of its libraries.
  private func lookAtCode(_ file: ElfFile, _ name: String, _ inspection: inout Inspection) throws(InspectionError) {
    let symbols = try file.dynamicSymbols()
    for call in symbols.wanted {
      if calls.intercepted.contains(call) { inspection.intercepted[call, default: []].append(name) }
      if CallTable.past[call] != nil { inspection.notIntercepted[call, default: []].append(name) }
    }
    if symbols.wanted.contains(where: { $0.hasPrefix("io_uring_") }) { inspection.usesIOUring = true }
    if symbols.wanted.contains("dlopen") || symbols.wanted.contains("dlsym") { inspection.looksUp.append(name) }
    if file.path == inspection.file {
      let own = symbols.offered.intersection(calls.intercepted).sorted()
      if !own.isEmpty {
        inspection.notes.append(
          "it has its own \(listed(own)), which stand before the preload's"
            + (own.contains("recvfrom") ? " (a sanitizer's do, and pass calls on)" : ""))
      }
      if symbols.wanted.contains("dlopen") {
        inspection.notes.append("it loads libraries while it runs (dlopen), which are not looked at here")
      }
    }
    let direct = SystemCalls(of: file, callsByNumber: symbols.wanted.contains("syscall"))
    if direct.usesRing { inspection.usesIOUring = true }
    if !direct.named.isEmpty { inspection.systemCalls[name] = direct.named }
  }

  /// Breadth first, as the loader does.
  private func followLibraries(of program: ElfFile, _ inspection: inout Inspection) throws(InspectionError) {
    let loader = Loader(libraryPath: environment["LD_LIBRARY_PATH"])
    var seen: Set<String> = []
    var needs = preloadNeeds.isEmpty ? [] : program.neededVersions(of: "libc.so.6")
    var queue: [(file: ElfFile, rpaths: [String])] = [(program, loader.searchPath(of: program).rpath)]
    var next = 0
    while next < queue.count {
      let (file, rpaths) = queue[next]
      next += 1
      let own = loader.searchPath(of: file)
      noteSurprises(own, file, &inspection)
      for name in file.names(MNELF_DT_NEEDED) where seen.insert(name).inserted {
        guard seen.count <= Self.librariesMax else {
          throw InspectionError(inspection.program, "more than \(Self.librariesMax) libraries")
        }
        let found = loader.find(
          name, rpaths: own.runpath.isEmpty ? rpaths : [], runpath: own.runpath, machine: program.machine, bits: program.bits)
        inspection.libraries.append(
          Inspection.Library(name: name, path: found?.path, foundBy: found?.by, neededBy: lastComponent(file.path)))
        guard let found else { continue }
        let library = try ElfFile(path: found.path)
        if name == "libc.so.6" {
          let offered = library.offeredVersions()
          inspection.glibcFound = latest(offered)
          let missing = preloadNeeds.filter { $0.hasPrefix("GLIBC_") && !offered.contains($0) }
          if let version = latest(missing) {
            inspection.obstacles.append(
              "its libc (\(found.path)) is older than glibc \(version), which the preload library needs")
          }
        }
        if !CallTable.isLibc(name) {
          try lookAtCode(library, name, &inspection)
          needs += library.neededVersions(of: "libc.so.6")
          if name.hasPrefix("liburing") { inspection.usesIOUring = true }
        }
        queue.append((library, rpaths + loader.searchPath(of: library).rpath))
      }
    }
    inspection.glibcNeeded = latest(needs)
    if !inspection.libraries.contains(where: { $0.name == "libc.so.6" }) && inspection.libc == "glibc" {
      inspection.notes.append("it does not need libc.so.6")
    }
    let lost = inspection.libraries.filter { $0.path == nil }.map(\.name)
    if !lost.isEmpty { inspection.notes.append("not found: \(listed(lost)); it will not start") }
  }

  /// Search paths that can bring in a library that nobody expects.
  private func noteSurprises(_ path: Loader.SearchPath, _ file: ElfFile, _ inspection: inout Inspection) {
    for (name, entries) in [("RPATH", path.rpath), ("RUNPATH", path.runpath)] {
      for entry in entries {
        var status = stat()
        let who = "\(name) of \(lastComponent(file.path))"
        if !entry.hasPrefix("/") {
          inspection.notes.append("\(who) has '\(entry)', which depends on the current directory")
        } else if unsafe stat(entry, &status) == 0, status.st_mode & UInt32(S_IWOTH) != 0 {
          inspection.notes.append("\(who) has \(entry), which everybody may write")
        }
      }
    }
  }

  private func judge(_ file: ElfFile, _ inspection: inout Inspection) {
    var obstacles = inspection.obstacles
    switch inspection.kind {
    case .staticallyLinked, .staticPIE: obstacles.append("it is statically linked: there is no loader that would preload a library")
    case .library: obstacles.append("it is a shared library, not a program")
    case .other: obstacles.append("it is not an executable file")
    case .dynamic: break
    }
    if isForeign(file) {
      obstacles.append(
        "it is for \(inspection.machine) (\(file.bits) bits), the preload library for \(name(ofMachine: preload.machine)) (\(preload.bits) bits)")
    }
    if let libc = inspection.libc, libc != "glibc" {
      obstacles.append("its libc is \(libc) (\(inspection.interpreter ?? "?")); the preload library is for glibc")
    }
    if inspection.isGo { obstacles.append("it is a Go program: Go makes its system calls without libc") }
    if file.privileges.setuid && file.privileges.uid != uid {
      obstacles.append("it is setuid (to uid \(file.privileges.uid)): the loader drops LD_PRELOAD for uid \(uid)")
    }
    if file.privileges.setgid && file.privileges.gid != gid {
      obstacles.append("it is setgid (to gid \(file.privileges.gid)): the loader drops LD_PRELOAD for gid \(gid)")
    }
    if file.privileges.capabilities && uid != 0 {
      obstacles.append("it has file capabilities: the loader drops LD_PRELOAD for uid \(uid)")
    }
    if file.privileges.capabilities || file.privileges.setuid || file.privileges.setgid, obstacles.isEmpty {
      inspection.notes.append("it has more rights than other users: for them, the loader drops LD_PRELOAD")
    }
    if inspection.usesIOUring {
      inspection.notes.append("it can use io_uring: what goes through a ring goes by the kernel, a Machnet socket's input is not seen there")
    }
    for (file, calls) in inspection.systemCalls.sorted(by: { $0.key < $1.key }) {
      inspection.notes.append("\(file) makes system calls without libc (\(listed(calls.keys.sorted()))): they go by the kernel")
    }
    let isInert = !inspection.intercepted.keys.contains { CallTable.ofSockets.contains($0) }
    inspection.obstacles = obstacles
    inspection.isInterceptable = obstacles.isEmpty
    if let first = obstacles.first {
      inspection.verdict = "cannot be intercepted: \(first)" + (obstacles.count > 1 ? " (and \(obstacles.count - 1) more)" : "")
    } else if isInert {
      inspection.verdict =
        "can be intercepted, but neither it nor its libraries import a call of sockets"
        + (inspection.looksUp.isEmpty ? "" : "; what they look up while they run (\(listed(inspection.looksUp))) may")
    } else {
      inspection.verdict =
        "can be intercepted" + (inspection.usesIOUring || !inspection.systemCalls.isEmpty ? ", but not all of it: see the notes" : "")
    }
  }

  private func name(ofMachine machine: Int) -> String {
    switch machine {
    case MNELF_EM_386: "i386"
    case MNELF_EM_X86_64: "x86-64"
    case MNELF_EM_ARM: "arm"
    case MNELF_EM_AARCH64: "aarch64"
    default: "machine \(machine)"
    }
  }
}

/// The latest of versions such as `GLIBC_2.34`, without the prefix.
func latest(_ versions: [String]) -> String? {
  func numbers(_ version: String) -> [Int] { version.split(separator: ".").map { Int($0) ?? 0 } }
  return versions.filter { $0.hasPrefix("GLIBC_2") }.map { String($0.dropFirst(6)) }
    .max { numbers($0).lexicographicallyPrecedes(numbers($1)) }
}

/// The first few of a list, and how many more there are.
public func listed(_ names: [String]) -> String {
  names.count <= 6 ? names.joined(separator: ", ") : names.prefix(5).joined(separator: ", ") + " and \(names.count - 5) more"
}

extension CallTable {
  static func why(_ call: String) -> String { past[call] ?? "" }
}

/// Why a call that is not intercepted goes by the kernel; for reports.
public func reasonForKernel(ofCall call: String) -> String { CallTable.why(call) }
