// Each thread adds to a table of its own, which outlives it; the list of tables is locked only when a thread first
// appears and when somebody starts or stops.
#include "phases.h"

#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>

namespace convext::cpu {
namespace {

struct Entry {
  const char* name;
  int64_t nanoseconds, calls;
};

struct Table {
  std::mutex mutex;
  std::vector<Entry> entries;  // in the order in which the phases ended first
};

std::mutex tables_mutex;
std::vector<std::shared_ptr<Table>>& tables() {
  static auto* list = new std::vector<std::shared_ptr<Table>>;  // never destroyed: threads may outlive static objects
  return *list;
}

std::shared_ptr<Table> new_table() {
  auto table = std::make_shared<Table>();
  const std::lock_guard<std::mutex> lock(tables_mutex);
  tables().push_back(table);
  return table;
}

Table& own_table() {
  thread_local const std::shared_ptr<Table> table = new_table();
  return *table;
}

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

void Phase::start(const char* name) {
  name_ = name;
  begin_ = now();
}

void Phase::stop() {
  const int64_t spent = now() - begin_;
  if (!recording_.load(std::memory_order_relaxed)) return;  // recording ended meanwhile
  Table& table = own_table();
  const std::lock_guard<std::mutex> lock(table.mutex);
  for (Entry& entry : table.entries)
    if (std::strcmp(entry.name, name_) == 0) {
      entry.nanoseconds += spent;
      ++entry.calls;
      return;
    }
  table.entries.push_back({name_, spent, 1});
}

bool start_phases() {
  const std::lock_guard<std::mutex> lock(tables_mutex);
  if (Phase::recording_.load()) return false;
  for (const auto& table : tables()) {
    const std::lock_guard<std::mutex> own(table->mutex);
    table->entries.clear();
  }
  Phase::recording_.store(true);
  return true;
}

std::vector<PhaseTime> stop_phases() {
  const std::lock_guard<std::mutex> lock(tables_mutex);
  Phase::recording_.store(false);
  std::vector<PhaseTime> result;
  int thread = 0;
  for (const auto& table : tables()) {
    const std::lock_guard<std::mutex> own(table->mutex);
    for (const Entry& entry : table->entries) result.push_back({entry.name, thread, entry.nanoseconds, entry.calls});
    thread += !table->entries.empty();
  }
  return result;
}

}  // namespace convext::cpu
