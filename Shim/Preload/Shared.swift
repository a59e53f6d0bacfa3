import Synchronization

/// A field that calls read, and some write, while another thread changes it: without the lock that guards the structure. Each access
/// is one load or store of the whole word, relaxed, which is the same instruction as a plain one; what has to be seen in
/// an order says so itself (`Atomic`, fences). Whoever reads two such fields must expect them to be of different moments.
///
/// (A compound assignment would be a formal access to the whole structure: write `x = x &+ 1`.)
@propertyWrapper
struct Shared<Value: Word>: ~Copyable {
  private let word: Atomic<Value>

  @inline(__always)
  init(wrappedValue: consuming Value) { word = Atomic(wrappedValue) }

  var wrappedValue: Value {
    @inline(__always) get { Value.load(word) }
    @inline(__always) nonmutating set { Value.store(newValue, word) }
  }
}

/// What fits into a word.
protocol Word: AtomicRepresentable {
  static func load(_ word: borrowing Atomic<Self>) -> Self
  static func store(_ value: consuming Self, _ word: borrowing Atomic<Self>)
}

// (`Atomic` has its operations by size.)
extension Word where AtomicRepresentation == UInt8.AtomicRepresentation {
  @inline(__always) static func load(_ word: borrowing Atomic<Self>) -> Self { word.load(ordering: .relaxed) }
  @inline(__always) static func store(_ value: consuming Self, _ word: borrowing Atomic<Self>) { word.store(value, ordering: .relaxed) }
}
extension Word where AtomicRepresentation == UInt16.AtomicRepresentation {
  @inline(__always) static func load(_ word: borrowing Atomic<Self>) -> Self { word.load(ordering: .relaxed) }
  @inline(__always) static func store(_ value: consuming Self, _ word: borrowing Atomic<Self>) { word.store(value, ordering: .relaxed) }
}
extension Word where AtomicRepresentation == UInt32.AtomicRepresentation {
  @inline(__always) static func load(_ word: borrowing Atomic<Self>) -> Self { word.load(ordering: .relaxed) }
  @inline(__always) static func store(_ value: consuming Self, _ word: borrowing Atomic<Self>) { word.store(value, ordering: .relaxed) }
}
extension Word where AtomicRepresentation == UInt64.AtomicRepresentation {
  @inline(__always) static func load(_ word: borrowing Atomic<Self>) -> Self { word.load(ordering: .relaxed) }
  @inline(__always) static func store(_ value: consuming Self, _ word: borrowing Atomic<Self>) { word.store(value, ordering: .relaxed) }
}

extension Bool: Word {}
extension Int32: Word {}
extension Int64: Word {}
extension Int: Word {}
extension UInt16: Word {}
extension UInt32: Word {}
extension UInt64: Word {}
