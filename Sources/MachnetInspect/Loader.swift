import CElf
import Glibc

/// Where the loader (ld.so(8)) looks for the libraries of a program.
struct Loader {
  /// LD_LIBRARY_PATH of the environment that the program will have.
  var libraryPath: [String]
  private let cache: LoaderCache
  private let directories: [String]
  /// `$LIB` and `$PLATFORM` in a search path.
  private let lib: String
  private let platform: String

  init(libraryPath: String?, cache: LoaderCache = LoaderCache(file: "/etc/ld.so.cache")) {
    self.libraryPath = (libraryPath ?? "").split(whereSeparator: { $0 == ":" || $0 == ";" }).map(String.init)
    self.cache = cache
    #if arch(x86_64)
    let triple = "x86_64-linux-gnu"
    platform = "x86_64"
    #else
    let triple = "aarch64-linux-gnu"
    platform = "aarch64"
    #endif
    lib = "lib/\(triple)"
    directories = ["/lib/\(triple)", "/usr/lib/\(triple)", "/lib64", "/usr/lib64", "/lib", "/usr/lib"]
  }

  /// What a file says about where its libraries are, expanded.
  struct SearchPath {
    /// Asked before LD_LIBRARY_PATH, by this file's libraries as well; void where there is a RUNPATH.
    var rpath: [String] = []
    /// Asked after it, by this file only.
    var runpath: [String] = []
  }

  func searchPath(of file: ElfFile) -> SearchPath {
    let runpath = file.names(MNELF_DT_RUNPATH).flatMap { expanded($0, file) }
    let rpath = runpath.isEmpty ? file.names(MNELF_DT_RPATH).flatMap { expanded($0, file) } : []
    return SearchPath(rpath: rpath, runpath: runpath)
  }

  private func expanded(_ path: String, _ file: ElfFile) -> [String] {
    let origin = directory(of: canonical(file.path) ?? file.path)
    return path.split(separator: ":", omittingEmptySubsequences: false).prefix(256).map { entry in
      // An empty entry is the current directory.
      var text = entry.isEmpty ? "." : String(entry)
      for (name, value) in [("ORIGIN", origin), ("LIB", lib), ("PLATFORM", platform)] {
        text = text.replacing("${\(name)}", with: value).replacing("$\(name)", with: value)
      }
      return text
    }
  }

  /// Finds a library for a file.
  ///
  /// - Parameter rpaths: RPATHs of the file and of those that wanted it, in that order.
  /// - Returns: its path, and which rule found it.
  func find(_ name: String, rpaths: [String], runpath: [String], machine: Int, bits: Int) -> (path: String, by: String)? {
    func fits(_ path: String) -> Bool {
      guard let header = ElfIdentity(path: path) else { return false }
      return header.machine == machine && header.bits == bits
    }
    if name.contains("/") { return fits(name) ? (name, "path") : nil }
    for (list, by) in [(rpaths, "RPATH"), (libraryPath, "LD_LIBRARY_PATH"), (runpath, "RUNPATH")] {
      for directory in list where fits("\(directory)/\(name)") { return ("\(directory)/\(name)", by) }
    }
    if let path = cache.paths(of: name).first(where: fits) { return (path, "ld.so.cache") }
    for directory in directories where fits("\(directory)/\(name)") { return ("\(directory)/\(name)", "default") }
    return nil
  }
}

/// Just enough of a file to know whether the loader would take it: 20 bytes, no more.
struct ElfIdentity {
  let bits: Int
  let machine: Int

  init?(path: String) {
    let descriptor = unsafe mnelf_open_path(path)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    var bytes = [UInt8](repeating: 0, count: 20)
    guard unsafe pread(descriptor, &bytes, 20, 0) == 20, bytes.starts(with: [0x7f, 0x45, 0x4c, 0x46]) else { return nil }
    bits = bytes[4] == 2 ? 64 : 32
    machine = bytes[5] == 1 ? Int(bytes[18]) | Int(bytes[19]) << 8 : Int(bytes[19]) | Int(bytes[18]) << 8
  }
}

/// /etc/ld.so.cache: what ldconfig(8) found in the directories of /etc/ld.so.conf.
///
/// The format is glibc's sysdeps/generic/dl-cache.h: a magic text, the number of entries, and for each the offsets of
/// the library's name and path.
struct LoaderCache {
  private var pathsByName: [String: [String]] = [:]

  init(file: String) {
    self.init(contents(of: file, limit: 16 << 20) ?? [])
  }

  init(_ bytes: [UInt8]) {
    let magic = Array("glibc-ld.so.cache1.1".utf8)
    let header = 48, entry = 24
    guard bytes.count >= header, bytes.starts(with: magic) else { return }
    let count = Int(littleEndian32(bytes, 20))
    func text(_ offset: Int) -> String? {
      guard offset >= header, offset < bytes.count else { return nil }
      let rest = bytes[offset...].prefix(Int(PATH_MAX))
      return rest.firstIndex(of: 0).map { String(decoding: rest[..<$0], as: UTF8.self) }
    }
    for index in 0..<min(count, (bytes.count - header) / entry) {
      let start = header + index * entry
      guard let name = text(Int(littleEndian32(bytes, start + 4))), let path = text(Int(littleEndian32(bytes, start + 8)))
      else { continue }
      // Entries for later processors only (glibc-hwcaps) have another version of the same library.
      let hardware = littleEndian32(bytes, start + 16) | littleEndian32(bytes, start + 20)
      if hardware == 0 { pathsByName[name, default: []].append(path) }
    }
  }

  func paths(of name: String) -> [String] { pathsByName[name] ?? [] }
}

/// The whole of a file of at most `limit` bytes.
func contents(of file: String, limit: Int) -> [UInt8]? {
  let descriptor = unsafe mnelf_open_path(file)
  guard descriptor >= 0 else { return nil }
  defer { close(descriptor) }
  var bytes: [UInt8] = []
  var chunk = [UInt8](repeating: 0, count: 64 << 10)
  while bytes.count <= limit {
    let count = unsafe read(descriptor, &chunk, chunk.count)
    if count < 0 { return nil }
    if count == 0 { return bytes }
    bytes += chunk[..<count]
  }
  return nil
}

func directory(of path: String) -> String {
  guard let slash = path.lastIndex(of: "/") else { return "." }
  return slash == path.startIndex ? "/" : String(path[..<slash])
}

func lastComponent(_ path: String) -> String { path.split(separator: "/").last.map(String.init) ?? path }

/// The path without links; nil when there is nothing.
func canonical(_ path: String) -> String? {
  var room = [CChar](repeating: 0, count: Int(PATH_MAX) + 1)
  guard unsafe realpath(path, &room) != nil, let end = room.firstIndex(of: 0) else { return nil }
  return String(decoding: room[..<end].map { UInt8(bitPattern: $0) }, as: UTF8.self)
}
