/* SPDX-License-Identifier: Apache-2.0
 *
 * Sizes of the planner's structs, so that the Python binding of the tests can
 * check that it lays them out as the compiler does.
 */
#include "storage/plan.h"

extern const uint32_t plan_struct_bytes[4];
const uint32_t plan_struct_bytes[4] = {sizeof(struct plan_profile), sizeof(struct plan_fragment),
                                       sizeof(struct plan_batch), sizeof(struct frame_batch)};
